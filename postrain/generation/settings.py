"""The top level of conf/generate.yaml: which groups a generation has and what each has to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from postrain.data.module import DataModule
from postrain.generation.keep import Keep
from postrain.hardware import Hardware
from postrain.models.sources import ModelSource
from postrain.rewards.base import Reward
from postrain.rollout.engine import Engine
from postrain.rollout.turns import Environment
from postrain.types import Count


@dataclass(frozen=True, kw_only=True)
class Paths:
    """Where things go."""

    output: str
    """Folders are made here."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Completions of a data source's prompts, scored, and the rows that are kept of them."""

    model: ModelSource
    data: DataModule
    reward: Reward
    rollout: Engine
    environment: Environment
    trainer: Hardware
    keep: Keep
    part: Literal["train", "eval"]
    """Whether the prompts are those to learn from or the held-out ones."""
    prompts: Count | None
    """The first so many of them; null is all."""
    samples: Count
    """Completions of each prompt."""
    greedy: bool
    """Also measures the greedy completion of each prompt."""
    threshold: float
    """The reward from which a completion counts as right."""
    chunk: Count
    """Prompts between two writes; what a kill can lose."""
    seed: int
    name: str | None
    resume: str | None
    allow_change: bool
    debug: bool
    paths: Paths
