"""Shared fixtures: a stand-in for datasketch, an optional package that depends on scipy."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType

import pytest

from tests.data.helpers import write_lines
from tests.data.modules import TALKS


class MinHash:
    """Exact set instead of a MinHash sketch."""

    def __init__(self, num_perm: int) -> None:
        self.members: set[bytes] = set()

    def update_batch(self, members: Sequence[bytes]) -> None:
        self.members.update(members)


class MinHashLSH:
    """Exact search over all pairs; datasketch estimates it."""

    def __init__(self, threshold: float, num_perm: int) -> None:
        self.threshold = threshold
        self.sketches: dict[str, MinHash] = {}

    def insert(self, name: str, sketch: MinHash) -> None:
        self.sketches[name] = sketch

    def query(self, sketch: MinHash) -> list[str]:
        return [
            name
            for name, other in self.sketches.items()
            if len(sketch.members & other.members) >= self.threshold * len(sketch.members | other.members)
        ]


@pytest.fixture(autouse=True)
def datasketch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two classes of datasketch that quality.py uses."""
    module = ModuleType("datasketch")
    module.__dict__.update(MinHash=MinHash, MinHashLSH=MinHashLSH)
    monkeypatch.setitem(sys.modules, "datasketch", module)


@pytest.fixture
def talks(tmp_path) -> str:
    return f"data.path={write_lines(tmp_path / 'talks.jsonl', TALKS)}"
