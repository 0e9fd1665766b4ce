"""The items of each update's batch, a function of (seed, update) only.

A run can therefore resume from its number of updates, and the global batch does not depend on the number of ranks.
Batches cross epoch boundaries; there is no short last batch. In a mixture each source has its own epochs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from postrain.data.encode import Encoded, collate
from postrain.data.interleave import Interleaving
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
    num_train_epochs: float | None = None
    """Passes over the items, which then determine `updates`."""

    def of_items(self, count: int) -> DataSpec:
        """With the updates of `num_train_epochs` passes over this number of training items, rounded up."""
        if self.num_train_epochs is None:
            return self
        # Rounded, because 0.1 · 30 is a little more than 3.
        return replace(self, updates=math.ceil(round(self.num_train_epochs * count / self.batch_size, 6)))


@dataclass(frozen=True)
class Stream:
    """The items of one source of a mixture."""

    start: int
    """Index of its first item among those of all sources."""
    count: int
    rate: float
    """Share of the drawn items that come from it."""


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
    streams: tuple[Stream, ...] = ()
    """The sources of a mixture; empty for items of one source."""

    def __len__(self) -> int:
        return max(0, self.updates - max(self.start, self.done()))

    def __iter__(self) -> Iterator[Batch]:
        for update in range(max(self.start, self.done()), self.updates):
            yield self.batch(update)

    def batch(self, update: int) -> Batch:
        """This rank's share of the batch of one update."""
        return collate([self.items[index] for index in self.indices(update)[self.rank :: self.ranks]])

    def indices(self, update: int) -> list[int]:
        """The items of a global batch. A batch may span two epochs."""
        first, size = update * self.batch_size, self.batch_size
        if not self.streams:
            return self._shuffled(len(self.items), first, size)
        before, after = self._interleaving.before(first), self._interleaving.before(first + size)
        drawn = [iter(self._drawn(number, *span)) for number, span in enumerate(zip(before, after, strict=True))]
        items = [next(drawn[source]) for source in self._interleaving.sources(first, size)]
        # Ranks take every n-th item: without the shuffle some ranks would get one source only.
        return [items[at] for at in torch.randperm(size, generator=generator(self.seed, "mix", update)).tolist()]

    def indices_seen(self) -> list[int]:
        """The distinct items of the whole run: all, or the first ones of the first epoch."""
        total = self.updates * self.batch_size
        if not self.streams:
            return self._shuffled(len(self.items), 0, min(len(self.items), total))
        ends = [min(stream.count, end) for stream, end in zip(self.streams, self.drawn(), strict=True)]
        return [item for number, end in enumerate(ends) for item in self._drawn(number, 0, end)]

    def drawn(self) -> list[int]:
        """Number of items that the whole run takes from each source of a mixture."""
        return self._interleaving.before(self.updates * self.batch_size)

    @cached_property
    def _interleaving(self) -> Interleaving:
        return Interleaving(tuple(stream.rate for stream in self.streams))

    def _drawn(self, number: int, first: int, end: int) -> list[int]:
        """The items of a source from position `first` of its own epochs to position `end`."""
        stream = self.streams[number]
        return [stream.start + item for item in self._shuffled(stream.count, first, end - first, number)]

    def _shuffled(self, count: int, first: int, length: int, *source: int) -> list[int]:
        """`length` of `count` items from position `first` of all epochs in a row, each shuffled differently."""
        if not length:
            return []
        epochs = range(first // count, (first + length - 1) // count + 1)
        orders = [epoch_order(count, self.seed, epoch, *source) for epoch in epochs]
        offset = first - epochs.start * count
        return torch.cat(orders)[offset : offset + length].tolist()


@lru_cache(maxsize=16)
def epoch_order(count: int, seed: int, epoch: int, *source: int) -> Tensor:
    """The order of the items in an epoch; kept, because each update takes a few of many items."""
    return torch.randperm(count, generator=generator(seed, "epoch", epoch, *source))
