"""Token rows as Arrow tables: in memory, or in a file that is memory-mapped.

A row of 100 tokens takes 4 kB as tensors and 0.6 kB here. Items become tensors when they are read.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from postrain.data.encode import Encoded
from postrain.data.item_values import TYPES, Unstorable

FEW = 10_000
"""Fewer items are kept as they are."""
BATCH = 4096
"""Items per record batch of Arrow."""
Layout = Mapping[str, Any]
"""The fields of an item: a type of TYPES, or the layout of an item within the item."""


def stored(items: Iterable[Encoded]) -> Sequence[Encoded]:
    """The items in memory, as a table if they are many."""
    rest = iter(items)
    few = tuple(islice(rest, FEW))
    if len(few) < FEW:
        return few
    parts = [_in_memory(few), *(_in_memory(chunk) for chunk in _chunks(rest))]
    return StoredItems(parts)


def write(path: Path, items: Iterable[Encoded]) -> None:
    """Writes the items to a file. Raises Unstorable."""
    import pyarrow  # noqa: PLC0415 - start-up time

    rest = _chunks(iter(items))
    first = next(rest, ())
    layout = layout_of(first[0]) if first else {}
    head = _table(first, layout) if first else pyarrow.record_batch({})
    schema = head.schema.with_metadata({"layout": json.dumps(layout)})
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_file(sink, schema) as writer:
        writer.write_batch(head)
        for chunk in rest:
            writer.write_batch(_table(chunk, layout))


def read(path: Path) -> Sequence[Encoded]:
    """The items in a file, memory-mapped."""
    import pyarrow  # noqa: PLC0415 - start-up time

    file = pyarrow.ipc.open_file(pyarrow.memory_map(str(path)))
    layout = json.loads(file.schema.metadata[b"layout"])
    parts = [ItemTable(file.get_batch(number), layout) for number in range(file.num_record_batches)] if layout else []
    return StoredItems(parts)


def _chunks(items: Iterator[Encoded]) -> Iterator[tuple[Encoded, ...]]:
    while chunk := tuple(islice(items, BATCH)):
        yield chunk


def _in_memory(items: tuple[Encoded, ...]) -> Sequence[Encoded]:
    try:
        layout = layout_of(items[0])
        return ItemTable(_table(items, layout), layout)
    except Unstorable:
        return items


class Items(Sequence[Encoded]):
    """A sequence of items that are made when they are read."""

    @abstractmethod
    def item(self, at: int) -> Encoded:
        """The item at a position, which is not negative."""

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Encoded, ...]: ...
    def __getitem__(self, index: int | slice) -> Encoded | tuple[Encoded, ...]:
        if isinstance(index, slice):
            return tuple(self[at] for at in range(*index.indices(len(self))))
        return self.item(range(len(self))[index])


class StoredItems(Items):
    """The items of several tables."""

    def __init__(self, parts: Sequence[Sequence[Encoded]]) -> None:
        self.parts = parts
        self.ends = [*accumulate(map(len, parts))]

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __iter__(self) -> Iterator[Encoded]:
        for part in self.parts:
            yield from part

    def item(self, at: int) -> Encoded:
        part = bisect(self.ends, at)
        return self.parts[part][at - (self.ends[part - 1] if part else 0)]

    def token_ids(self) -> Iterator[Tensor]:
        """The token ids of all items, many rows at a time."""
        for part in self.parts:
            if isinstance(part, ItemTable):
                yield from part.token_ids()
            else:
                yield from _chunked_ids(part)


def joined(sequences: Iterable[Sequence[Encoded]]) -> StoredItems:
    """The items of several sequences."""
    parts = [one.parts if isinstance(one, StoredItems) else [one] for one in sequences]
    return StoredItems([part for of_one in parts for part in of_one])


def distinct_ids(items: Sequence[Encoded]) -> list[int]:
    """The distinct token ids of items, sorted."""
    many = items.token_ids() if isinstance(items, StoredItems) else _chunked_ids(items)
    seen = torch.zeros(1, dtype=torch.bool)
    for ids in many:
        if len(ids) and (largest := int(ids.max())) >= len(seen):
            seen = torch.cat([seen, torch.zeros(largest + 1 - len(seen), dtype=torch.bool)])
        seen[ids] = True
    return seen.nonzero().flatten().tolist()


def _chunked_ids(items: Iterable[Encoded]) -> Iterator[Tensor]:
    return (torch.cat([ids for item in chunk for ids in item.sequences()]) for chunk in _chunks(iter(items)))


# The values of an item --------------------------------------------------------------------------------------------


def layout_of(item: Encoded) -> Layout:
    """The fields of an item with their types. Raises Unstorable."""
    found = {}
    for name, value in _values(item):
        found[name] = layout_of(value) if isinstance(value, Encoded) else _type_of([value])
    return {"class": type(item).__name__, "fields": found}


def _values(item: Encoded) -> Iterator[tuple[str, Any]]:
    return ((field.name, getattr(item, field.name)) for field in fields(item))


def _type_of(values: Sequence[Any]) -> str:
    """The name in TYPES of the type of all values. Raises Unstorable."""
    found = {value.dtype if isinstance(value, Tensor) else type(value) for value in values}
    names = set(map(_type_name, found))
    if len(names) > 1 or not names <= TYPES.keys():
        raise Unstorable(f"values of the types {', '.join(sorted(names))}")
    return names.pop()


def _type_name(found: type | torch.dtype) -> str:
    if isinstance(found, torch.dtype):
        return str(found)
    return "json" if issubclass(found, Mapping) else found.__name__


def _table(items: Sequence[Encoded], layout: Layout) -> Any:
    """The items as a record batch. Raises Unstorable if one has another layout."""
    import pyarrow  # noqa: PLC0415 - start-up time

    with _unstorable():
        return pyarrow.record_batch({name: TYPES[kind].pack(values) for name, kind, values in _columns(items, layout)})


@contextmanager
def _unstorable() -> Iterator[None]:
    """Raises Unstorable for the errors of values that a column cannot hold."""
    try:
        yield
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise Unstorable(str(error)) from None


def _columns(items: Sequence[Encoded], layout: Layout, prefix: str = "") -> Iterator[tuple[str, str, list[Any]]]:
    for name, kind in layout["fields"].items():
        values = [getattr(item, name) for item in items]
        if isinstance(kind, Mapping):
            yield from _columns(values, kind, f"{prefix}{name}.")
        elif (found := _type_of(values)) == kind:
            yield f"{prefix}{name}", kind, values
        else:
            raise Unstorable(f"{name} of the type {found}, after {kind}")


class ItemTable(Items):
    """The items of one record batch."""

    def __init__(self, batch: Any, layout: Layout) -> None:
        self.batch, self.layout = batch, layout
        self._build: Callable[[int], Encoded] | None = None

    def __len__(self) -> int:
        return self.batch.num_rows

    def item(self, at: int) -> Encoded:
        self._build = self._build or self._builder(self.layout)
        return self._build(at)

    def _builder(self, layout: Layout, prefix: str = "") -> Callable[[int], Encoded]:
        """A function that returns the item at an index."""
        item = _item_class(layout["class"])
        parts = [
            self._builder(kind, f"{prefix}{name}.")
            if isinstance(kind, Mapping)
            else TYPES[kind].reader(self.batch.column(f"{prefix}{name}"))
            for name, kind in layout["fields"].items()
        ]
        return lambda at: item(*(part(at) for part in parts))

    def token_ids(self) -> Iterator[Tensor]:
        """The token ids of `sequences`, of many rows at a time."""
        for name in _ids_columns(self.layout):
            yield torch.from_numpy(self.batch.column(name).values.to_numpy().astype(np.int64))


def _ids_columns(layout: Layout, prefix: str = "") -> Iterator[str]:
    for name, kind in layout["fields"].items():
        if isinstance(kind, Mapping):
            left_out = name in _item_class(layout["class"]).repeated_fields
            yield from () if left_out else _ids_columns(kind, f"{prefix}{name}.")
        elif kind == "torch.int64":
            yield f"{prefix}{name}"


def _item_class(name: str) -> type[Any]:
    """The class of items with a name."""
    known = [Encoded]
    for one in known:
        known += one.__subclasses__()
    return next(one for one in known if one.__name__ == name)
