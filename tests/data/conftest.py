"""Shared fixtures: demonstrations as a file, and a fake of datasketch, an optional package that depends on scipy."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType

import pytest

from tests.data.helpers import write_lines
from tests.data.modules import DEMONSTRATIONS


class MinHash:
    """A set of all members instead of a MinHash sketch."""

    def __init__(self, num_perm: int) -> None:
        self.members: set[bytes] = set()

    def update_batch(self, members: Sequence[bytes]) -> None:
        self.members.update(members)


class MinHashLSH:
    """Exact search over all pairs; datasketch approximates it."""

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
    """Replaces datasketch by the two classes that quality.py uses."""
    module = ModuleType("datasketch")
    module.__dict__.update(MinHash=MinHash, MinHashLSH=MinHashLSH)
    monkeypatch.setitem(sys.modules, "datasketch", module)


@pytest.fixture
def data_path(tmp_path) -> str:
    """An override of data.path with a file of DEMONSTRATIONS."""
    return f"data.path={write_lines(tmp_path / 'demonstrations.jsonl', DEMONSTRATIONS)}"
