"""A fake reasoning-gym: tasks with and without a seed; strict, lenient, raising and evaluating scorers."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


@dataclass
class Config:
    """Every task's settings."""

    largest: int = 99
    seed: int = 0
    size: int = 500

    def validate(self) -> None:
        assert self.largest > 0, "largest must be\npositive"


class Adding:
    """Sums; a longer answer that contains the right one gets partial credit, as in reasoning-gym's default."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = random.Random(self.config.seed + index)
        one, other = rng.randint(0, self.config.largest), rng.randint(0, self.config.largest)
        return self.item(f"{one} + {other} = ?", str(one + other))

    def item(self, question: str, answer: str | None) -> dict[str, Any]:
        return {"question": question, "answer": answer, "metadata": {"range": (0, self.config.largest)}}

    def score_answer(self, answer: str, entry: Mapping[str, Any]) -> float:
        if answer == entry["answer"]:
            return 1.0
        return len(entry["answer"]) / len(answer) if entry["answer"] in answer else 0.0


class Ambient(Adding):
    """Draws from the global generator."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        drawn = random.randint(0, 10**9)
        return self.item(f"Say {drawn}.", str(drawn))


class Raising(Adding):
    """Raises for answers that are not integers."""

    def score_answer(self, answer: str, entry: Mapping[str, Any]) -> float:
        return float(int(answer) == int(entry["answer"]))


class Evaluating(Adding):
    """Evaluates the answer."""

    def score_answer(self, answer: str, entry: Mapping[str, Any]) -> float:
        return float(eval(answer) == int(entry["answer"]))


class Open(Adding):
    """Has no stored answer; any number up to `largest` is right."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.item(f"Name number {index}.", None)

    def score_answer(self, answer: str, entry: Mapping[str, Any]) -> float:
        return float(int(answer) <= self.config.largest)


DATASETS = {
    "adding": (Adding, Config),
    "ambient": (Ambient, Config),
    "raising": (Raising, Config),
    "countdown": (Evaluating, Config),
    "open": (Open, Config),
    "ransom_note": (Adding, Config),
    "coin_flip": (Adding, Config),
}


def create_dataset(name: str, **settings: Any) -> Adding:
    """A task by name, with validated settings."""
    kind, configure = DATASETS[name]
    config = configure(**settings)
    config.validate()
    return kind(config)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Installs the fake as the package `reasoning_gym`."""
    module = ModuleType("reasoning_gym")
    module.__dict__.update(create_dataset=create_dataset, factory=SimpleNamespace(DATASETS=DATASETS))
    monkeypatch.setitem(sys.modules, "reasoning_gym", module)
