"""What the callbacks read from the method they watch: six attributes, so that a test needs a fake of ten lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

from lightning.pytorch import LightningModule


class CountersLike(Protocol):
    """Own counters of a method; Lightning's global_step counts optimizer steps, which is not the same."""

    updates: int
    optimizer_steps: int
    episodes: int
    tokens: int


class MethodLike(Protocol):
    """A method, seen from a callback."""

    counters: CountersLike
    """Already counted when on_train_batch_end is called."""
    last_metrics: dict[str, float]
    """Metrics of this update, the same on every rank; callbacks add theirs (`perf/...`)."""
    headline: Sequence[str]
    """Names of the three metrics that matter."""
    updates: int
    """How many updates the whole run has."""
    logs_to_trackers: bool
    """Whether Lightning sends `last_metrics` to the trackers."""
    stop_reason: str
    """Why the run ends before its last update; empty while it does not."""


def method_of(module: LightningModule) -> MethodLike:
    """The module as a method; every module of postrain/methods is one."""
    return cast(MethodLike, module)
