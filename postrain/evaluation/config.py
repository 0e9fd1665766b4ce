"""The config of an evaluation, and what it inherits from the run whose model it evaluates."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from omegaconf import OmegaConf

from postrain.config.check import MISSING
from postrain.config.places import command
from postrain.config.schema import Deferred, Paths, Section
from postrain.config.trust import Guest, Item
from postrain.data.module import DataModule
from postrain.errors import ConfigError
from postrain.evaluation.eval_models import INITIAL, EvalSource, SourceRun, eval_sources
from postrain.evaluation.evaluator import Evaluation
from postrain.evaluation.task import PreflightCheck
from postrain.hardware.trainer import Hardware
from postrain.models.sources import ModelSource, ResolvedModel
from postrain.rewards.base import PreferenceModel, Reward
from postrain.rollout.engine import Engine
from postrain.rollout.local import LocalEngine
from postrain.rollout.turns import SINGLE_TURN, Environment
from postrain.types import Count, CountOrZero, Seed

INSTEAD = {
    "evaluation.every": "leave it out",
    "evaluation.completions": "each measure has its own number: evaluation.tasks.NAME.prompts=COUNT",
    "evaluation.shown": "say shown=COUNT",
    "evaluation.greedy": "rollout.temperature=0 samples greedy_metrics",
}
"""Remedies for keys of `evaluation` that only training reads."""
INHERITED = ("data", "reward", "rollout", "environment")
"""Groups that an evaluation takes from the run unless the command line chooses others."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Section):
    """Measures of a model, or of several on the same prompts. Raises ConfigError for settings that do not fit."""

    model: ModelSource
    """The model to evaluate."""
    data: DataModule
    """The rows to evaluate on: of a run, those it had, where the command line chooses no other."""
    reward: Deferred[Reward | PreferenceModel] | None = None
    """What scores or compares completions."""
    rollout: Engine = field(default_factory=LocalEngine)
    """What samples completions, and how."""
    environment: Environment = SINGLE_TURN
    """What answers the policy while it writes."""
    trainer: Hardware = field(default_factory=Hardware)
    """The hardware: processes, devices and precision."""
    evaluation: Evaluation
    """The measures."""
    reference: str | None = INITIAL
    """What KL is measured against: a directory, run folder or Hub name; start is what the run began with; null is
    nothing."""
    compare: tuple[str, ...] = ()
    """Further models that are measured on the same data with the same seeds, as run folders, model directories or
    options of the model group: compare=[runs/a,nano]"""
    metric: str | None = None
    """The MEASURE/METRIC that sweeps compare, such as accuracy/greedy; null is the first measure's total, or its first
    metric."""
    shown: CountOrZero = 64
    """Completions of each model that are kept in sample_responses.json."""
    micro_batch_tokens: Count = 2048
    """Tokens scored at once: a memory knob that changes no number."""
    seed: Seed = 0
    """Decides samples and the choice of rows."""
    name: str | None = None
    """What the folder is called; null is evaluate."""
    report: bool = True
    """Write report.html at the end."""
    debug: bool = False
    """Show tracebacks."""
    paths: Paths = field(default_factory=Paths)
    """Where folders are made."""

    def __post_init__(self) -> None:
        measures = self.evaluation.tasks
        if not measures:
            raise ConfigError(
                "evaluation: this option only says when a training run is evaluated, and names no measure; choose "
                f"evaluation=all, or one of those listed by: {command('evaluate')} evaluation"
            )
        if self.metric is not None and self.metric.partition("/")[0] not in measures:
            known = ", ".join(measures)
            raise ConfigError(f"metric={self.metric}: expected MEASURE/METRIC of a measure there is: {known}")

    def check(self) -> None:
        """Raises ConfigError for what the machine, a model or a measure refuses, before there is a folder."""
        self.trainer.check()
        if self.trainer.ranks > 1:
            raise ConfigError("trainer: an evaluation runs in one process; use trainer=cpu or trainer=gpu")
        assert self.models
        for measure in self.evaluation.tasks.values():
            if isinstance(measure.value, PreflightCheck):
                measure.value.check(self.rollout.sampling)

    @cached_property
    def models(self) -> list[EvalSource]:
        """The model and those it is compared with."""
        return eval_sources(self.model, self.compare)

    @property
    def resolved(self) -> ResolvedModel:
        """The model that is evaluated."""
        return self.models[0].resolved

    @property
    def label(self) -> str:
        """The first part of the folder."""
        return self.name or "evaluate"


def inherit(plain: Mapping[str, Any], words: Sequence[str], said: Collection[Item]) -> dict[str, Any]:
    """A composed config with the groups of the run that it evaluates, where the command line `words` choose none.

    Raises ConfigError if there is no model, and for values that need confirmation; `said` are those of today's command.
    """
    origin = SourceRun.of(model_path(plain))
    config, taken = inherited(plain, origin, words)
    if origin and taken:
        Guest(origin.folder.path, said).check({group: config[group] for group in taken}, EvaluateConfig)
        print(f"as in {origin.folder.path}: {', '.join(taken)}; the command line can choose others", flush=True)
    return config


def inherited(
    plain: Mapping[str, Any], origin: SourceRun | None, words: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """The config with the run's own groups where `words` choose none, and which groups these are.

    `data.eval_rows=...` and the like change what is taken over.
    """
    if origin is None:
        return dict(plain), []
    keys = [word.lstrip("+~").partition("=")[0].partition("@")[0] for word in words]
    taken = [group for group in INHERITED if group not in keys and group in origin.config]
    found = OmegaConf.create({group: origin.config[group] for group in taken})
    composed = OmegaConf.create(dict(plain))
    for key in keys:
        if key.partition(".")[0] in taken:
            OmegaConf.update(found, key, OmegaConf.select(composed, key), force_add=True)
    changed: Any = OmegaConf.to_container(found)
    return {**plain, **changed}, [group for group in taken if changed[group] is not None]


def check_words(words: Sequence[str]) -> None:
    """Raises ConfigError for a key on the command line that only says how a training run is evaluated."""
    for word in words:
        key = word.lstrip("+~").partition("=")[0]
        if key in INSTEAD:
            raise ConfigError(
                f"{key}: says how a training run looks at itself, and changes nothing here; {INSTEAD[key]}"
            )


def model_path(plain: Mapping[str, Any]) -> str:
    """model.path. Raises ConfigError if it is missing: the most common first mistake."""
    path = (plain.get("model") or {}).get("path")
    if path in (None, MISSING):
        raise ConfigError(
            "model.path: say what to evaluate: model.path=runs/METHOD/MODEL/RUN (a run folder, its model/, or any "
            "Hugging Face directory), or a model by name: model=nano"
        )
    if not isinstance(path, str):
        raise ConfigError(f"model.path: expected text, got {path!r}")
    return path
