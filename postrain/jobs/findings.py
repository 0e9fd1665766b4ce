"""Findings of a verification: counts of compared numbers, and one line for each mismatch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from postrain.formatting import shortened
from postrain.jsonl import Record, leaves, number

TOLERANCE = 0.01
"""The largest relative difference of a number of a run that was made on other hardware or versions, or on a GPU."""
SMALL = 1e-4
"""The absolute difference that is tolerated besides, for numbers near 0."""


@dataclass
class Findings:
    """The result of comparing a run with its repetition."""

    exact: bool = True
    """Whether numbers have to be equal bit for bit; else within TOLERANCE, and sampled texts may differ."""
    compared: Counter[str] = field(default_factory=Counter)
    """How many numbers and texts were compared, by what they are."""
    mismatches: list[str] = field(default_factory=list)
    """One line for each record, checkpoint or file that differs."""
    notes: list[str] = field(default_factory=list)
    """What could not be compared, and why."""

    def records(self, kind: str, where: str, recorded: Record, repeated: Record) -> None:
        """Compares two records; `where` names file and update, as in `metrics.jsonl, update 12`."""
        ours, theirs = dict(leaves("", recorded)), dict(leaves("", repeated))
        self.compared[kind] += len(ours)
        different = [name for name in {**ours, **theirs} if not self.same(ours.get(name), theirs.get(name))]
        if different:
            name = different[0]
            ours_text, theirs_text = (shortened(repr(one.get(name)), 60) for one in (ours, theirs))
            more = f" (and {len(different) - 1} more)" if len(different) > 1 else ""
            self.mismatches.append(f"{where}: {name} is {ours_text}, not {theirs_text}{more}")

    def same(self, one: Any, other: Any) -> bool:
        """Whether two values of records are equal, or close enough."""
        first, second = number(one), number(other)
        if self.exact or first is None or second is None:
            return one == other or (not self.exact and isinstance(one, str) and isinstance(other, str))
        return abs(first - second) <= TOLERANCE * max(abs(first), abs(second)) + SMALL or one == other

    def tensors(self, kind: str, where: str, recorded: Any, repeated: Any) -> None:
        """Compares nested containers of tensors and values, such as the content of a checkpoint."""
        ours, theirs = dict(leaves("", recorded)), dict(leaves("", repeated))
        self.compared[kind] += sum(one.numel() if isinstance(one, Tensor) else 1 for one in ours.values())
        different = [name for name in {**ours, **theirs} if not self._close(ours.get(name), theirs.get(name))]
        if different:
            self.mismatches.append(f"{where}: {len(different)} of {len(ours)} entries differ, such as {different[0]}")

    def _close(self, one: Any, other: Any) -> bool:
        if not isinstance(one, Tensor) or not isinstance(other, Tensor):
            return self.same(one, other) if not isinstance(one, Tensor) and not isinstance(other, Tensor) else False
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        if self.exact:
            # Bit for bit, so that NaN equals itself and 0 differs from -0.
            return torch.equal(_bits(one), _bits(other))
        change = (one.float() - other.float()).norm()
        return bool(change <= TOLERANCE * other.float().norm() + SMALL)


def _bits(value: Tensor) -> Tensor:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
