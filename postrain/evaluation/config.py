"""The config of `postrain evaluate`, and the groups it inherits from the evaluated run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from omegaconf import OmegaConf

from postrain.config.check import MISSING
from postrain.config.override_text import key_of
from postrain.config.paths import command
from postrain.config.schema import Deferred, Paths, Section
from postrain.config.trust import Item, UntrustedFolder
from postrain.data.module import DataModule
from postrain.errors import ConfigError
from postrain.evaluation.eval_models import INITIAL, EvalSource, SourceRun, eval_sources
from postrain.evaluation.evaluator import Evaluation
from postrain.evaluation.task import PreflightCheck
from postrain.hardware.trainer import Hardware
from postrain.models.sources import ModelSource, ResolvedModel
from postrain.rewards.base import PreferenceModel, Reward
from postrain.rollout.engine import Engine
from postrain.rollout.environment import SINGLE_TURN, Environment
from postrain.rollout.local import LocalEngine
from postrain.types import Count, CountOrZero, Seed

TRAINING_ONLY = {
    "evaluation.every": "leave it out",
    "evaluation.completions": "each task has its own number: evaluation.tasks.NAME.prompts=COUNT",
    "evaluation.logged_samples": "use logged_samples=COUNT",
    "evaluation.greedy": "rollout.temperature=0 decodes greedily",
}
"""Remedies for keys of `evaluation` that only training reads."""
INHERITED = ("data", "reward", "rollout", "environment")
"""Groups taken from the evaluated run unless the command line overrides them."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Section):
    """Evaluation of one or more models on the same data. Raises ConfigError for settings that do not fit."""

    model: ModelSource
    """The model to evaluate."""
    data: DataModule
    """The rows to evaluate on. Defaults to the data of the evaluated run."""
    reward: Deferred[Reward | PreferenceModel] | None = None
    """The reward or preference that scores completions."""
    rollout: Engine = field(default_factory=LocalEngine)
    """The sampling engine and its settings."""
    environment: Environment = SINGLE_TURN
    """The environment that responds to the model's turns."""
    trainer: Hardware = field(default_factory=Hardware)
    """The hardware: processes, devices and precision."""
    evaluation: Evaluation
    """The evaluation tasks."""
    reference: str | None = INITIAL
    """The reference model for KL: a directory, run folder or Hub name. start is the run's reference, else its initial
    model; null disables KL."""
    compare: tuple[str, ...] = ()
    """Further models to evaluate on the same data with the same seeds, as run folders, model directories or options of
    the model group: compare=[runs/a,nano]"""
    metric: str | None = None
    """The TASK/METRIC that sweeps compare, such as accuracy/greedy. null is the first task's total, or its first
    metric."""
    logged_samples: CountOrZero = 64
    """Number of completions per model written to sample_responses.json."""
    micro_batch_tokens: Count | None = None
    """Tokens per forward pass when scoring. Affects memory, not results. null: 2048 on a CPU, 16384 on a GPU."""
    seed: Seed = 0
    """Seed of the samples and of the train/held-out split."""
    name: str | None = None
    """Name of the folder; null is evaluate."""
    report: bool = True
    """Write report.html at the end."""
    debug: bool = False
    """Show tracebacks."""
    paths: Paths = field(default_factory=Paths)
    """Output directories."""

    def __post_init__(self) -> None:
        tasks = self.evaluation.tasks
        if not tasks:
            raise ConfigError(
                "evaluation: this option has no tasks, only settings for evaluation during training; choose "
                f"evaluation=all, or an option listed by: {command('evaluate')} evaluation"
            )
        if self.metric is not None and self.metric.partition("/")[0] not in tasks:
            known = ", ".join(tasks)
            raise ConfigError(f"metric={self.metric}: expected TASK/METRIC with one of the tasks {known}")

    def check(self) -> None:
        """Raises ConfigError if the machine, a model or a task cannot run. Called before the folder is created."""
        self.trainer.check()
        if self.trainer.ranks > 1:
            raise ConfigError("trainer: an evaluation runs in one process; use trainer=cpu or trainer=gpu")
        assert self.models
        for task in self.evaluation.tasks.values():
            if isinstance(task.value, PreflightCheck):
                task.value.check(self.rollout.sampling)

    @cached_property
    def models(self) -> list[EvalSource]:
        """The model and the models it is compared with."""
        return eval_sources(self.model, self.compare)

    @property
    def resolved(self) -> ResolvedModel:
        """The evaluated model."""
        return self.models[0].resolved

    @property
    def label(self) -> str:
        """The first part of the folder's path."""
        return self.name or "evaluate"


def inherit(plain: Mapping[str, Any], overrides: Sequence[str], confirmed: Collection[Item]) -> dict[str, Any]:
    """A composed config with the groups of the evaluated run that `overrides` do not set.

    Raises ConfigError if there is no model, and for values that need confirmation; `confirmed` are the values of the
    current command line.
    """
    origin = SourceRun.of(model_path(plain))
    config, taken = inherited(plain, origin, overrides)
    if origin and taken:
        UntrustedFolder(origin.folder.path, confirmed).check({group: config[group] for group in taken}, EvaluateConfig)
        print(
            f"as in {origin.folder.path}: {', '.join(taken)}; override these groups on the command line to change them",
            flush=True,
        )
    return config


def inherited(
    plain: Mapping[str, Any], origin: SourceRun | None, overrides: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """The config with the run's groups that `overrides` do not set, and the names of these groups.

    Overrides of single keys, such as `data.eval_rows=...`, apply to the inherited group.
    """
    if origin is None:
        return dict(plain), []
    keys = [key_of(override).partition("@")[0] for override in overrides]
    taken = [group for group in INHERITED if group not in keys and group in origin.config]
    found = OmegaConf.create({group: origin.config[group] for group in taken})
    composed = OmegaConf.create(dict(plain))
    for key in keys:
        if key.partition(".")[0] in taken:
            OmegaConf.update(found, key, OmegaConf.select(composed, key), force_add=True)
    changed: Any = OmegaConf.to_container(found)
    return {**plain, **changed}, [group for group in taken if changed[group] is not None]


def check_overrides(overrides: Sequence[str]) -> None:
    """Raises ConfigError for overrides of keys that only apply to evaluation during training."""
    for override in overrides:
        key = key_of(override)
        if key in TRAINING_ONLY:
            raise ConfigError(f"{key}: applies to evaluation during training only; {TRAINING_ONLY[key]}")


def model_path(plain: Mapping[str, Any]) -> str:
    """The value of model.path. Raises ConfigError if it is missing."""
    path = (plain.get("model") or {}).get("path")
    if path in (None, MISSING):
        raise ConfigError(
            "model.path: expected the model to evaluate: model.path=runs/METHOD/MODEL/RUN (a run folder, its model/, "
            "or a Hugging Face directory), or a model by name: model=nano"
        )
    if not isinstance(path, str):
        raise ConfigError(f"model.path: expected text, got {path!r}")
    return path
