"""The top level of a config: which groups there are and what each has to be."""

from __future__ import annotations

from dataclasses import dataclass

from postrain.config.schema import Section
from postrain.data.module import DataModule
from postrain.evaluation.evaluator import Evaluation
from postrain.hardware.trainer import Hardware
from postrain.methods.base import Method
from postrain.models.adapters import Adapter
from postrain.models.sources import ModelSource
from postrain.rewards.base import Reward
from postrain.rewards.pairwise import Preference
from postrain.rollout.engine import Engine
from postrain.rollout.turns import Environment
from postrain.training.early_stopping import EarlyStop
from postrain.training.loggers import Tracker
from postrain.types import Seed


@dataclass(frozen=True, kw_only=True)
class Paths(Section):
    """Where things go."""

    output: str
    """Run folders are made here."""
    sweeps: str
    """Folders of sweeps are made here."""


@dataclass(frozen=True, kw_only=True)
class Root:
    """A whole run."""

    method: Method
    model: ModelSource
    adapter: Adapter
    data: DataModule
    reward: Reward | Preference | None = None
    rollout: Engine
    environment: Environment
    trainer: Hardware
    logger: Tracker
    evaluation: Evaluation
    early_stop: EarlyStop
    seed: Seed
    reference: str | None
    """A model to compare with in place of the one the policy starts from."""
    name: str | None
    resume: str | None
    allow_change: bool
    report: bool
    debug: bool
    paths: Paths
