"""Which source each item of a mixture comes from.

The sources are interleaved in proportion to their rates: item k of a source with n of the CYCLE positions is at
(k + ½) / n of the cycle, and the cycle repeats. Every stretch of the run, such as a batch, therefore has the requested
shares up to one item, and an item is a function of its position alone.

S sources, N positions of a cycle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

CYCLE = 1 << 16
"""Positions until the pattern repeats; rates are rounded to 1 / CYCLE."""


@dataclass(frozen=True)
class Interleaving:
    """The sources of an endless sequence of items."""

    rates: tuple[float, ...]
    """Share of the items from each source, [S]; they sum to 1. A source with a rate above 0 is not rounded to 0."""

    @cached_property
    def counts(self) -> np.ndarray:
        """Positions of each source in a cycle, int64 [S]; largest remainders."""
        exact = np.asarray(self.rates) * CYCLE
        counts = np.where(exact > 0, np.maximum(np.floor(exact), 1), 0).astype(np.int64)
        left = CYCLE - int(counts.sum())
        order = np.argsort(-(exact - counts), kind="stable")
        counts[order[: max(left, 0)]] += 1
        counts[np.argmax(counts)] += min(left, 0)
        return counts

    @cached_property
    def pattern(self) -> np.ndarray:
        """The source of each position of a cycle, int64 [N]."""
        times = np.concatenate([(np.arange(count) + 0.5) / count for count in self.counts.tolist() if count])
        sources = np.repeat(np.arange(len(self.counts)), self.counts)
        return sources[np.lexsort((sources, times))]

    @cached_property
    def _before(self) -> np.ndarray:
        """Positions of each source before each position of a cycle, int64 [N + 1, S]."""
        one_hot = self.pattern[:, None] == np.arange(len(self.counts))
        return np.concatenate([np.zeros((1, len(self.counts)), dtype=np.int64), one_hot.cumsum(0)])

    def before(self, position: int) -> list[int]:
        """Number of items of each source before a position, [S]."""
        cycles, rest = divmod(position, CYCLE)
        return (cycles * self.counts + self._before[rest]).tolist()

    def sources(self, first: int, length: int) -> list[int]:
        """The source of each of `length` items from position `first` on."""
        return self.pattern[np.arange(first, first + length) % CYCLE].tolist()


def shares(weights: Sequence[float], temperature: float) -> list[float]:
    """Shares pᵢ ∝ wᵢ^(1/T): T = 1 is proportional, larger T more uniform (Raffel et al. 2020, section 3.5.2).

    A weight of 0 stays 0.
    """
    largest = max(weights)
    powers = [(weight / largest) ** (1 / temperature) if weight > 0 else 0.0 for weight in weights]
    total = sum(powers)
    return [power / total for power in powers]
