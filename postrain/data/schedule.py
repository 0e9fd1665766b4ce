"""The items of each update's batch, a function of (seed, update) only.

A run can therefore resume from its number of updates, and the global batch does not depend on the number of ranks.
Batches cross epoch boundaries; there is no short last batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from postrain.data.encode import Encoded, collate
from postrain.seeds import generator
from postrain.types import Batch

EVAL_BATCH = 64
"""Held-out items per batch; fixed, so that metrics over a batch (KTO's KL baseline) are comparable between runs with
different training batch sizes."""


@dataclass(frozen=True)
class DataSpec:
    """A method's requirements for its data."""

    kind: str
    """Kind of record the method trains on."""
    context: int
    """Maximum tokens per row."""
    completion_tokens: int
    """Tokens reserved after each prompt for sampling."""
    batch_size: int
    updates: int
    seed: int
    use_margin: bool = False
    """Whether the method reads the margins of pairs."""


@dataclass(frozen=True)
class EvalBatches:
    """The held-out items in order, as batches; the last one may be short."""

    items: Sequence[Encoded]
    batch_size: int = EVAL_BATCH

    def __len__(self) -> int:
        return -(-len(self.items) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for at in range(0, len(self.items), self.batch_size):
            yield collate(self.items[at : at + self.batch_size])


@dataclass(frozen=True, kw_only=True)
class TrainBatches:
    """The batches of the updates from `start` on, this rank's share of each."""

    items: Sequence[Encoded]
    batch_size: int
    """Items of a global batch, over all ranks."""
    updates: int
    seed: int
    start: int = 0
    """First update of the iteration."""
    done: Callable[[], int] = int
    """Number of finished updates, read at the start of each iteration: Lightning may iterate a loader several times."""
    rank: int = 0
    ranks: int = 1

    def __len__(self) -> int:
        return max(0, self.updates - max(self.start, self.done()))

    def __iter__(self) -> Iterator[Batch]:
        for update in range(max(self.start, self.done()), self.updates):
            yield collate([self.items[index] for index in self.indices(update)[self.rank :: self.ranks]])

    def indices(self, update: int) -> list[int]:
        """The items of a global batch. A batch may span two epochs."""
        return self._shuffled(update * self.batch_size, self.batch_size)

    def indices_seen(self) -> list[int]:
        """The distinct items of the whole run: all, or the first ones of the first epoch."""
        return self._shuffled(0, min(len(self.items), self.updates * self.batch_size))

    def _shuffled(self, first: int, length: int) -> list[int]:
        """`length` items from position `first` of all epochs in a row, each shuffled differently."""
        count = len(self.items)
        epochs = range(first // count, (first + length - 1) // count + 1)
        order = torch.cat([torch.randperm(count, generator=generator(self.seed, "epoch", epoch)) for epoch in epochs])
        offset = first - epochs.start * count
        return order[offset : offset + length].tolist()
