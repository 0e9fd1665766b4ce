"""The config of a generation."""

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
from postrain.rollout.local import LocalEngine
from postrain.rollout.turns import SINGLE_TURN, Environment
from postrain.types import Count, Seed, Size


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(Section):
    """Completions of a data source's prompts, scored, and the rows that are kept of them. Raises ConfigError for
    settings that do not fit together."""

    model: ModelSource
    """The model that samples."""
    data: DataModule
    """Where the prompts come from."""
    reward: Deferred[Reward | PreferenceModel] | None = None
    """What scores completions; null with selection=revisions and selection=none only."""
    rollout: Engine = field(default_factory=LocalEngine)
    """What samples completions, and how."""
    environment: Environment = SINGLE_TURN
    """What answers the policy while it writes."""
    trainer: Hardware = field(default_factory=Hardware)
    """The hardware: processes, devices and precision."""
    selection: Selection
    """Which completions become rows of the data file."""
    part: Literal["train", "eval"] = "train"
    """Prompts to learn from (train) or held-out ones (eval)."""
    prompts: Count | None = None
    """Maximum number of prompts, from the first on; null uses all."""
    samples: Size = 8
    """Completions of each prompt."""
    greedy: bool = False
    """Measure the greedy completion of each prompt too."""
    threshold: float = 1.0
    """The reward from which a completion counts as right."""
    chunk: Size = 64
    """Prompts between two writes: what a kill can lose."""
    seed: Seed = 0
    """Decides the samples."""
    name: str | None = None
    """What the folder is called; null is generate."""
    resume: str | None = None
    """Resume the generation in this folder: resume=runs/generate/nano/..."""
    allow_change: bool = False
    """Let a resumed generation differ from how it was started: another selection= makes other rows of the same
    completions."""
    debug: bool = False
    """Show tracebacks."""
    paths: Paths = field(default_factory=Paths)
    """Where folders are made."""

    def __post_init__(self) -> None:
        if self.reward is None:
            if isinstance(self.selection, TopK | PreferencePairs):
                raise ConfigError(
                    "reward: expected one, since selection chooses completions by it; only selection=none and "
                    "selection=revisions do not need one"
                )
            return
        found = self.reward.target
        # Whether objects of a class can be called stands in the class; every class itself can be.
        if isinstance(found, type) and not any("__call__" in vars(base) for base in found.__mro__):
            raise ConfigError(
                f"reward: {found.__name__} compares two completions, and a generation needs a number for each; choose "
                "another reward"
            )

    def check(self) -> None:
        """Raises ConfigError for what the machine refuses, before there is a folder."""
        self.trainer.check()
        if self.trainer.ranks > 1:
            raise ConfigError("trainer: a generation runs in one process; use trainer=cpu or trainer=gpu")

    @cached_property
    def resolved(self) -> ResolvedModel:
        """The model that writes."""
        return self.model.resolve()

    @property
    def label(self) -> str:
        """The first part of the folder."""
        return self.name or "generate"
