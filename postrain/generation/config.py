"""The config of `postrain generate`."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from postrain.config.schema import Deferred, Paths, Section
from postrain.data.module import DataModule
from postrain.errors import ConfigError
from postrain.generation.selection import PreferencePairs, Selection, TopK
from postrain.hardware.trainer import Hardware
from postrain.models.sources import ModelSource, ResolvedModel
from postrain.rewards.base import PreferenceModel, Reward
from postrain.rollout.engine import Engine
from postrain.rollout.environment import SINGLE_TURN, Environment
from postrain.rollout.local import LocalEngine
from postrain.types import Count, Seed, Size


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(Section):
    """Samples and scores completions of a data source's prompts, and writes selected ones as training data. Raises
    ConfigError for settings that do not fit together."""

    model: ModelSource
    """The model that samples."""
    data: DataModule
    """The source of the prompts."""
    reward: Deferred[Reward | PreferenceModel] | None = None
    """The reward of completions; null is allowed with selection=revisions and selection=none only."""
    rollout: Engine = field(default_factory=LocalEngine)
    """The sampling engine and its settings."""
    environment: Environment = SINGLE_TURN
    """The environment that responds to the model's turns."""
    trainer: Hardware = field(default_factory=Hardware)
    """The hardware: processes, devices and precision."""
    selection: Selection
    """The selection of completions for the data file."""
    split: Literal["train", "eval"] = "train"
    """The split of the prompts: train or eval (held-out)."""
    prompts: Count | None = None
    """Maximum number of prompts, in order; null is all."""
    samples: Size = 8
    """Completions per prompt."""
    greedy: bool = False
    """Also evaluate one greedy completion per prompt."""
    threshold: float = 1.0
    """A completion is correct if its reward is at least this."""
    chunk: Size = 64
    """Prompts per write to disk. An interrupted run loses at most one chunk."""
    seed: Seed = 0
    """Seed of the samples."""
    name: str | None = None
    """Name of the folder; null is generate."""
    resume: str | None = None
    """Resume the generation in this folder: resume=runs/generate/nano/..."""
    allow_change: bool = False
    """Allow changed settings when resuming; another selection= selects other rows of the same completions."""
    debug: bool = False
    """Show tracebacks."""
    paths: Paths = field(default_factory=Paths)
    """Output directories."""

    def __post_init__(self) -> None:
        if self.reward is None:
            if isinstance(self.selection, TopK | PreferencePairs):
                raise ConfigError(
                    "reward: expected one, since selection ranks completions by it; only selection=none and "
                    "selection=revisions do not need one"
                )
            return
        target = self.reward.target
        # `callable(cls)` is true for every class; whether its objects are callable is defined in the class.
        if isinstance(target, type) and not any("__call__" in vars(base) for base in target.__mro__):
            raise ConfigError(
                f"reward: {target.__name__} compares two completions, but generate needs a score of each; choose "
                "another reward"
            )

    def check(self) -> None:
        """Raises ConfigError if the machine cannot run this. Called before the folder is created."""
        self.trainer.check()
        if self.trainer.ranks > 1:
            raise ConfigError("trainer: a generation runs in one process; use trainer=cpu or trainer=gpu")

    @cached_property
    def resolved(self) -> ResolvedModel:
        """The model that samples."""
        return self.model.resolve()

    @property
    def label(self) -> str:
        """The first part of the folder's path."""
        return self.name or "generate"
