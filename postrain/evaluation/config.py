"""The top level of conf/evaluate.yaml: which groups an evaluation has, what each has to be, and what goes together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from postrain.config.check import MISSING, check
from postrain.config.schema import Paths
from postrain.data.module import DataModule
from postrain.evaluation.evaluator import Evaluation
from postrain.hardware.trainer import Hardware
from postrain.models.sources import ModelSource
from postrain.rewards.base import Reward
from postrain.rewards.pairwise import Preference
from postrain.rollout.engine import Engine
from postrain.rollout.turns import Environment
from postrain.types import ConfigError, Count, CountOrZero, Seed

START = "start"
"""For `reference`: what the run began with."""
INSTEAD = {
    "evaluation.every": "leave it out",
    "evaluation.completions": "each measure has its own number: evaluation.measures.NAME.prompts=COUNT",
    "evaluation.shown": "say shown=COUNT",
    "evaluation.greedy": "rollout.temperature=0 samples greedily",
}
"""What to say in place of the keys of `evaluation` that only training reads."""


@dataclass(frozen=True, kw_only=True)
class Appraisal:
    """Measures of a model, or of several on the same prompts."""

    model: ModelSource
    data: DataModule
    rollout: Engine
    environment: Environment
    trainer: Hardware
    evaluation: Evaluation
    reference: str | None
    """What KL is measured against."""
    compare: tuple[str, ...]
    """Further models: run folders, model directories, or options of the model group such as nano."""
    metric: str | None
    """measure/metric, by which sweeps compare evaluations."""
    shown: CountOrZero
    """Completions of each model that are kept."""
    micro_batch_tokens: Count
    seed: Seed
    name: str | None
    report: bool
    debug: bool
    paths: Paths
    # Hydra leaves a group out that is null.
    reward: Reward | Preference | None = None


def check_appraisal(config: Mapping[str, Any]) -> None:
    """Raises one ConfigError with what is wrong with an evaluation's config; builds nothing."""
    check(config, Appraisal)
    if not config["evaluation"]["measures"]:
        raise ConfigError(
            "evaluation: this option only says when a training run is evaluated, and names no measure; choose "
            "evaluation=all, or one of those listed by: python -m postrain.evaluate evaluation"
        )
    measures, metric = config["evaluation"]["measures"], config["metric"]
    if metric is not None and metric.partition("/")[0] not in measures:
        raise ConfigError(f"metric={metric}: expected MEASURE/METRIC of a measure there is: {', '.join(measures)}")


def check_words(words: Sequence[str]) -> None:
    """Raises ConfigError for a key on the command line that only says how a training run looks at itself."""
    for word in words:
        key = word.lstrip("+~").partition("=")[0]
        if key in INSTEAD:
            raise ConfigError(
                f"{key}: says how a training run looks at itself, and changes nothing here; {INSTEAD[key]}"
            )


def check_model(config: Mapping[str, Any]) -> None:
    """Raises ConfigError where nobody has said what to evaluate: the most common first mistake."""
    path = (config.get("model") or {}).get("path")
    if path in (None, MISSING):
        raise ConfigError(
            "model.path: say what to evaluate: model.path=runs/METHOD/MODEL/RUN (a run folder, its model/, or any "
            "Hugging Face directory), or a model by name: model=nano"
        )
    if not isinstance(path, str):
        raise ConfigError(f"model.path: expected text, got {path!r}")
