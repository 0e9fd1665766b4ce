"""Fakes of a method and a trainer with only the attributes that callbacks read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import LightningModule

from postrain.runs.folder import RunFolder


class FakeMethod(LightningModule):
    """Counts updates and reports the metrics it is given."""

    def __init__(self, updates: int = 10, done: int = 0) -> None:
        super().__init__()
        self.counters = SimpleNamespace(updates=done, optimizer_steps=2 * done, episodes=8 * done, tokens=100 * done)
        self.last_metrics: dict[str, float] = {}
        self.headline = ("reward/total", "kl/exact", "completion/length")
        self.updates = updates
        self.stop_reason = ""

    def step(self, **metrics: float) -> None:
        """One update, with these metrics (reward__total stands for reward/total)."""
        counters = self.counters
        counters.updates += 1
        counters.optimizer_steps += 2
        counters.episodes += 8
        counters.tokens += 100
        self.last_metrics = {name.replace("__", "/"): value for name, value in metrics.items()}


@dataclass
class FakeStrategy:
    """One rank; `others` is whether another rank has decided to stop."""

    others: bool = False

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        return (decision and self.others) if all else (decision or self.others)


@dataclass
class FakeTrainer:
    is_global_zero: bool = True
    loggers: list[Any] = field(default_factory=list)
    strategy: FakeStrategy = field(default_factory=FakeStrategy)
    should_stop: bool = False


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, "ppo", "nano", "12345678")


@pytest.fixture
def make_method() -> Callable[..., FakeMethod]:
    return FakeMethod


@pytest.fixture
def trainer() -> Any:
    return FakeTrainer()


@pytest.fixture
def other_rank() -> Any:
    return FakeTrainer(is_global_zero=False)
