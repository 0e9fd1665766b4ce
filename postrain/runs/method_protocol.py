"""The attributes of a method that callbacks use; small enough to fake in a test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

from lightning.pytorch import LightningModule


class CountersLike(Protocol):
    """Counters of a method. Lightning's global_step counts optimizer steps instead of updates."""

    updates: int
    optimizer_steps: int
    episodes: int
    tokens: int


class MethodLike(Protocol):
    """A method as callbacks see it."""

    counters: CountersLike
    """Already include the current update in on_train_batch_end."""
    last_metrics: dict[str, float]
    """Metrics of this update, equal on all ranks; callbacks add to them (`perf/...`)."""
    headline: Sequence[str]
    """Names of the method's three headline metrics."""
    updates: int
    """Number of updates of the whole run."""
    logs_to_trackers: bool
    """Whether Lightning logs `last_metrics` to the trackers."""
    stop_reason: str
    """Why the run ends before its last update; empty otherwise."""


def method_of(module: LightningModule) -> MethodLike:
    """The module, typed as a method."""
    return cast(MethodLike, module)
