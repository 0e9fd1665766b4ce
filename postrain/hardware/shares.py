"""Work that ranks divide among them, with the results of all items on every rank: evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from postrain.errors import ConfigError
from postrain.hardware import collectives

T = TypeVar("T")
SequenceT = TypeVar("SequenceT", bound=Sequence[Any])


@dataclass(frozen=True)
class Share:
    """A rank's share of items in order: contiguous, and of the same size on all ranks up to one item."""

    items: range
    counts: bool = True
    """Whether the results of these items are used; False where another rank computes them too."""

    @classmethod
    def of(cls, count: int, *, together: bool = True) -> Share:
        """This rank's share of `count` items. `together`: each rank has at least one item, since a sharded model needs
        all ranks; if there are fewer items than ranks, each has all of them and the results of the first are used."""
        world, rank = collectives.world_size(), collectives.rank()
        if count < world and (together or not count):
            return cls(range(count), rank == 0)
        items = range(count * rank // world, count * (rank + 1) // world)
        return cls(items, bool(items))


def dealt(items: SequenceT) -> SequenceT:
    """This rank's items, dealt in turn. A rank that gets none computes the first one too: a sharded model needs all
    ranks."""
    own: Any = items[collectives.rank() :: collectives.world_size()] or items[:1]
    return own


def map_shares(count: int, function: Callable[[Share], T], *, together: bool = True) -> list[T]:
    """The results of `function` for the shares of all ranks, in order, on every rank; see `Share.of`.

    Without `together`, a rank without items does not call it. A ConfigError of one rank is raised on all of them.
    """
    share = Share.of(count, together=together)
    found: list[T] = []
    error: ConfigError | None = None
    try:
        if share.counts or together:
            found.append(function(share))
    except ConfigError as raised:
        error = raised
    parts = collectives.gather((found if share.counts else [], error and str(error)))
    if error is not None:
        raise error
    for _, message in parts:
        if message is not None:
            raise ConfigError(message)
    return [one for part, _ in parts for one in part]


def map_items(count: int, function: Callable[[range], Sequence[T]], *, together: bool = True) -> list[T]:
    """The results for all items, in order, where `function` returns one for each of some items; see `map_shares`."""
    return [one for part in map_shares(count, lambda share: function(share.items), together=together) for one in part]
