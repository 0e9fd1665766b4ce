"""The config of a training run: which parts it has and what each has to be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Annotated

import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger

from postrain.config.schema import TARGET, Deferred, Given, Paths, Section
from postrain.data.module import DataModule
from postrain.evaluation.evaluator import Evaluation
from postrain.hardware.trainer import Hardware
from postrain.methods.base import Method
from postrain.models.adapters import Adapter, NoAdapter
from postrain.models.sources import ModelSource, ResolvedModel
from postrain.rewards.base import Preference, Reward
from postrain.rollout.engine import Engine
from postrain.rollout.local import LocalEngine
from postrain.rollout.turns import SINGLE_TURN, Environment
from postrain.training.early_stopping import EarlyStop
from postrain.training.loggers import LightningTracker, NoTracker, Tracker
from postrain.types import ConfigError, Seed

MOST_TOKENS = 10**9
"""Of all completions of one update; as token ids and log-probabilities they take a dozen gigabytes."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Section):
    """A training run. Raises ConfigError for settings that do not go together."""

    method: Method
    """The method that trains, with its settings."""
    model: ModelSource
    """The model to start from."""
    adapter: Adapter = field(default_factory=NoAdapter)
    """What learns: all weights, or an adapter."""
    data: DataModule
    """The rows to learn from, and the held-out ones."""
    reward: Deferred[Reward | Preference] | None = None
    """What scores or compares completions; methods that sample need one."""
    rollout: Engine = field(default_factory=LocalEngine)
    """What samples completions, and how."""
    environment: Environment = SINGLE_TURN
    """What answers the policy while it writes."""
    trainer: Hardware = field(default_factory=Hardware)
    """The hardware: processes, devices and precision."""
    logger: Tracker | Logger = field(default_factory=NoTracker)
    """Where metrics are sent besides metrics.jsonl."""
    callbacks: Mapping[str, Callback] = field(default_factory=dict)
    """Lightning callbacks by any name. An evaluation counts as a validation, and its metrics are there to monitor."""
    optim: Annotated[Deferred[torch.optim.Optimizer] | None, Given({"params", "lr"})] = None
    """A torch optimizer in place of AdamW; learning rate, schedule and weight decay are the method's. null is AdamW."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    """What is measured on held-out rows, and when."""
    early_stop: EarlyStop = field(default_factory=EarlyStop)
    """When a run without prospects ends early; it is still evaluated and exported."""
    seed: Seed = 0
    """Decides the order of rows, samples and fresh weights."""
    reference: str | None = None
    """A directory, run folder or Hub name of the reference model (KL, log-ratios); null is the model that the policy
    starts from."""
    name: str | None = None
    """What the run's folder and trackers call it; null is the method's name."""
    resume: str | None = None
    """Resume the run in this folder: resume=runs/ppo/nano/..."""
    allow_change: bool = False
    """Let a resumed run differ from how it was started."""
    report: bool = True
    """Write report.html at the end."""
    debug: bool = False
    """Show tracebacks."""
    paths: Paths = field(default_factory=Paths)
    """Where folders are made."""

    def __post_init__(self) -> None:
        method = self.method
        sizes = {
            "method.batch_size": method.batch_size,
            "method.group_size": getattr(method, "group_size", 1),
            "rollout.max_new_tokens": self.rollout.sampling.max_new_tokens,
        }
        # Sizes that are allowed alone, and give an update more tokens than any memory holds.
        if method.needs_reward and math.prod(sizes.values()) > MOST_TOKENS:
            given = " × ".join(f"{key}={size}" for key, size in sizes.items() if size > 1)
            raise ConfigError(f"{given}: expected at most {MOST_TOKENS} tokens an update; lower one of them")
        if self.early_stop.flat_updates and not method.needs_reward:
            raise ConfigError("early_stop.flat_updates: this method has no reward that could be flat; leave it null")

    def check(self) -> None:
        """Raises ConfigError for what the machine or a part refuses, before there is a folder."""
        self.trainer.check()
        self.adapter.quantization()
        for measure in self.evaluation.tasks.values():
            assert measure.value

    @property
    def tracker(self) -> Tracker:
        """The logger, with the exit state of a run."""
        return LightningTracker(self.logger) if isinstance(self.logger, Logger) else self.logger

    @property
    def make_optimizer(self) -> Callable[..., torch.optim.Optimizer] | None:
        """Makes the optimizer from parameter groups and `lr`; None is AdamW."""
        if self.optim is None:
            return None
        settings = {name: value for name, value in (self.optim.settings or {}).items() if name != TARGET}
        return partial(self.optim.target, **settings)

    @cached_property
    def resolved(self) -> ResolvedModel:
        """The model that learns."""
        return self.model.resolve()

    @property
    def label(self) -> str:
        """The first part of the run's folder."""
        return self.name or type(self.method).__name__.lower()
