"""Preferences: how likely one completion is preferred to another. Unlike a reward they need not put completions in any
order: rock, paper and scissors beat each other in a circle.

Axes: B comparisons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from postrain.rewards.function import Function
from postrain.rewards.user_code import Arguments, FunctionPath
from postrain.types import ConfigError, Positive

Texts = Sequence[str]
Columns = Sequence[Mapping[str, Any]]


@runtime_checkable
class Preference(Protocol):
    """Compares two completions of a prompt."""

    def beats(self, prompts: Texts, first: Texts, second: Texts, columns: Columns) -> Tensor:
        """P(first is preferred to second | prompt), float32 [B] in [0, 1]; NaN where it cannot tell."""
        ...

    def to(self, device: torch.device | str) -> None:
        """Moves what computes, if anything does, to where the policy is."""
        ...


@dataclass(kw_only=True, eq=False)
class PairwiseFunction:
    """What a Python function says, called as function(prompts, first, second, **columns) -> list[float | None]."""

    function: FunctionPath
    """`package.module.name`, or `path/to/file.py:name`."""
    arguments: Arguments
    """Further keyword arguments, the same for every comparison."""
    timeout: Positive | None = None
    """Seconds that a call, which compares a whole batch, may take; null is no limit."""

    def __post_init__(self) -> None:
        self.call = Function(function=self.function, arguments=self.arguments, timeout=self.timeout)

    def to(self, device: torch.device | str) -> None:
        """Nothing to move."""

    def beats(self, prompts: Texts, first: Texts, second: Texts, columns: Columns) -> Tensor:
        """See `Preference.beats`. Raises ConfigError for what is no probability."""
        compared = [
            {**row, "first": one, "second": other} for row, one, other in zip(columns, first, second, strict=True)
        ]
        found_B = self.call(prompts, first, compared).total_B
        wrong = ((found_B < 0) | (found_B > 1)).nonzero()
        if len(wrong):
            raise ConfigError(
                f"{self.call}: returned {float(found_B[wrong[0, 0]]):g}, and a preference is a probability; expected a "
                "number from 0 (the second is preferred) to 1 (the first)"
            )
        return found_B
