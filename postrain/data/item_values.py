"""Types of the values in items, and how Arrow tables hold them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


class Unstorable(Exception):
    """An item with a value that a table cannot hold unchanged."""


@dataclass(frozen=True)
class ValueType:
    """How a type of value is stored."""

    pack: Callable[[Sequence[Any]], Any]
    """The values as an Arrow array."""
    reader: Callable[[Any], Callable[[int], Any]]
    """For an Arrow array, a function that returns the value at an index."""


def _list_type(join: Callable[[Sequence[Any]], np.ndarray], unpack: Callable[[np.ndarray], Any]) -> ValueType:
    def packed(values: Sequence[Any]) -> Any:
        import pyarrow  # noqa: PLC0415 - start-up time

        offsets = np.cumsum([0, *map(len, values)], dtype=np.int32)
        return pyarrow.ListArray.from_arrays(pyarrow.array(offsets), pyarrow.array(join(values)))

    def reader(array: Any) -> Callable[[int], Any]:
        offsets, values = array.offsets.to_numpy(), array.values.to_numpy()
        return lambda at: unpack(values[offsets[at] : offsets[at + 1]])

    return ValueType(packed, reader)


def _scalar_type(arrow_type: str, pack: Callable[[Any], Any] = lambda value: value, unpack: Any = None) -> ValueType:
    def packed(values: Sequence[Any]) -> Any:
        import pyarrow  # noqa: PLC0415 - start-up time

        return pyarrow.array([pack(value) for value in values], type=getattr(pyarrow, arrow_type)())

    def reader(array: Any) -> Callable[[int], Any]:
        return lambda at: unpack(array[at].as_py()) if unpack else array[at].as_py()

    return ValueType(packed, reader)


def _flags(values: Sequence[Sequence[Any]]) -> np.ndarray:
    flags = [flag for value in values for flag in value]
    if not all(isinstance(flag, bool) for flag in flags):
        raise Unstorable("a list of other values than true and false")
    return np.array(flags, dtype=np.uint8)


def _to_json(value: Mapping[str, Any]) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        raise Unstorable("a column that is not JSON") from None
    # repr: NaN differs from itself, and 1 equals 1.0.
    if repr(json.loads(text)) != repr(value):
        raise Unstorable("a column that JSON changes")
    return text


TYPES: Mapping[str, ValueType] = {
    "torch.int64": _list_type(
        lambda rows: torch.cat(tuple(rows)).int().numpy(), lambda ids: torch.from_numpy(ids.astype(np.int64))
    ),
    "torch.bool": _list_type(
        lambda rows: torch.cat(tuple(rows)).byte().numpy(), lambda mask: torch.from_numpy(mask.astype(np.bool_))
    ),
    "tuple": _list_type(_flags, lambda flags: tuple(map(bool, flags.tolist()))),
    "int": _scalar_type("int64"),
    "float": _scalar_type("float64"),
    "bool": _scalar_type("bool_"),
    "str": _scalar_type("large_string", str),
    "json": _scalar_type("large_string", _to_json, json.loads),
}
"""The types of values in items; a tuple holds booleans."""
