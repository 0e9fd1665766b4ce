"""The top level of conf/generate.yaml: which groups a generation has, what each has to be, and what goes together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from postrain.config.check import check
from postrain.config.schema import Paths, load_target
from postrain.data.module import DataModule
from postrain.generation.keep import Keep, Preferences, Top
from postrain.hardware.trainer import Hardware
from postrain.models.sources import ModelSource
from postrain.rewards.base import Reward
from postrain.rewards.pairwise import Preference
from postrain.rollout.engine import Engine
from postrain.rollout.turns import Environment
from postrain.types import ConfigError, Count, Seed, Size


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Completions of a data source's prompts, scored, and the rows that are kept of them."""

    model: ModelSource
    data: DataModule
    rollout: Engine
    environment: Environment
    trainer: Hardware
    keep: Keep
    part: Literal["train", "eval"]
    """Whether the prompts are those to learn from or the held-out ones."""
    prompts: Count | None
    """The first so many of them; null is all."""
    samples: Size
    """Completions of each prompt."""
    greedy: bool
    """Also measures the greedy completion of each prompt."""
    threshold: float
    """The reward from which a completion counts as right."""
    chunk: Size
    """Prompts between two writes; what a kill can lose."""
    seed: Seed
    name: str | None
    resume: str | None
    allow_change: bool
    debug: bool
    paths: Paths
    # Hydra leaves a group out that is null.
    reward: Reward | Preference | None = None
    """None with keep=revisions and keep=none only."""


def check_generation(config: Mapping[str, Any]) -> None:
    """Raises one ConfigError with what is wrong with a generation's config; builds nothing."""
    check(config, Generation)
    if config.get("reward") is None:
        if load_target(config["keep"]["_target_"]) in (Top, Preferences):
            raise ConfigError(
                "reward: expected one, since keep chooses completions by it; keep=none and keep=revisions do without"
            )
        return
    found = load_target(config["reward"]["_target_"])
    # Whether objects of a class can be called stands in the class; every class itself can be.
    if isinstance(found, type) and not any("__call__" in vars(base) for base in found.__mro__):
        raise ConfigError(
            f"reward: {found.__name__} compares two completions, and a generation needs a number for each; choose "
            "another reward"
        )
