"""Checks values that JSON, CSV and Parquet allow and training cannot use: replaces them, or raises with row and column.

Unpaired surrogates and NUL characters become U+FFFD and are counted. Bytes are read as UTF-8; other bytes are errors in
the columns that a record uses (layouts.py). Values of NumPy, torch and pandas become plain values. Duplicate
keys in an object, integers of more than 1000 digits and nesting deeper than 100 levels are errors. NaN and infinities
are not checked here but where a number is read (layouts.number).
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from postrain.errors import ConfigError

MAX_LEVELS = 100
MAX_DIGITS = 1000
NOT_TEXT = re.compile("[\ud800-\udfff\0]")
REPLACEMENT = "\ufffd"
REPLACED = "unpaired surrogate or NUL replaced by U+FFFD"
PANDAS_NULLS = ("NAType", "NaTType")
BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]')


class Cell(str):
    """Marks a cell of a CSV file: text that may stand for a boolean or a number."""


@dataclass(frozen=True)
class OversizedInteger:
    """Marks an integer with too many digits."""

    digits: int


class DuplicateKeys(dict[str, Any]):
    """Marks a JSON object in which a key occurs twice."""

    key = ""


class Binary(dict[str, str]):
    """Marks bytes that are not UTF-8 text; holds them as hexadecimal digits."""


class Struct(dict[str, Any]):
    """Marks a row or an object of a Parquet or Arrow file, where absent keys are null."""


def decode(text: str) -> Any:
    """Parses JSON. Raises json.JSONDecodeError, also for nesting that exceeds Python's recursion limit.

    Returns OversizedInteger and DuplicateKeys as markers, since only the caller of `clean_values` knows the line for
    the error message.
    """
    try:
        return DECODER.decode(text)
    except RecursionError:
        raise json.JSONDecodeError(f"nested deeper than {MAX_LEVELS} levels", text, _too_deep_at(text)) from None


def clean_values(values: Mapping[str, Any], where: str) -> tuple[dict[str, Any], set[str]]:
    """The values of a row as text, numbers, lists and objects, and a description of each replacement.

    The objects of a Struct are Structs. Raises ConfigError with the row and the column.
    """
    replaced: set[str] = set()
    if isinstance(values, DuplicateKeys):
        raise ConfigError(f"{where}: the column {values.key!r:.60} occurs twice; remove one of them")
    for name in values:
        if not isinstance(name, str):
            raise ConfigError(f"{where}: column names have to be text, got {name!r:.60}; rename the column")
    made = Struct if isinstance(values, Struct) else dict
    return {_name(name): _clean(value, name, where, replaced, 1, made) for name, value in values.items()}, replaced


def refuse_repeated(columns: Sequence[str], name: str) -> None:
    """Raises ConfigError if two columns have the same name."""
    for place, column in enumerate(columns):
        if column in columns[:place]:
            raise ConfigError(
                f"{name}: the columns {columns.index(column) + 1} and {place + 1} are both named {column!r}; "
                "rename one of them"
            )


def _clean(value: Any, column: str, where: str, replaced: set[str], level: int, made: type[dict[str, Any]]) -> Any:
    if type(value) is not str and hasattr(value, "tolist"):
        value = _plain(value)
    if isinstance(value, str):
        if NOT_TEXT.search(value) is None:
            return value
        replaced.add(f"{REPLACED} in {_text(column)!r:.60}")
        return type(value)(_text(value))
    if isinstance(value, OversizedInteger):
        raise ConfigError(
            f"{where}: {column!r:.60} holds a number of {value.digits} digits; at most {MAX_DIGITS} can be read"
        )
    if isinstance(value, DuplicateKeys):
        raise ConfigError(f"{where}: {column!r:.60} holds an object with the key {value.key!r:.60} twice; remove one")
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, bytes | bytearray):
        # Spark, Hive and Impala write Parquet columns of text as bytes.
        found = _decoded(value)
        return found if isinstance(found, Binary) else _clean(found, column, where, replaced, level, made)
    if not isinstance(value, Mapping | list | tuple):
        # Dates and decimals of Parquet files become text, because run folders hold JSON.
        return None if type(value).__name__ in PANDAS_NULLS else str(value)
    if level >= MAX_LEVELS:
        raise ConfigError(f"{where}: {column!r:.60} is nested deeper than {MAX_LEVELS} levels; correct the row")
    if isinstance(value, list | tuple):
        return [_clean(item, column, where, replaced, level + 1, made) for item in value]
    return made((_key(name), _clean(item, column, where, replaced, level + 1, made)) for name, item in value.items())


def _plain(value: Any) -> Any:
    """An array or a scalar of NumPy, torch or pandas as lists, numbers and text."""
    # Dates of NumPy would become integers.
    is_time = getattr(getattr(value, "dtype", None), "kind", "") in ("M", "m")
    return (value.astype(str) if is_time else value).tolist()


def _decoded(value: bytes | bytearray) -> str | Binary:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return Binary(bytes=value.hex())


def _text(value: str) -> str:
    return NOT_TEXT.sub(REPLACEMENT, value)


def _name(value: str) -> str:
    """The name of a column or field, one object for all rows."""
    return sys.intern(str(_text(value)))


def _key(value: Any) -> Any:
    """The key of an object; keys that JSON cannot hold become text."""
    return value if value is None or type(value) in (bool, int, float) else _name(str(value))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    marked = DuplicateKeys(found)
    seen: set[str] = set()
    marked.key = next(key for key, _ in pairs if key in seen or seen.add(key))
    return marked


def _integer(digits: str) -> int | OversizedInteger:
    return int(digits) if len(digits) <= MAX_DIGITS else OversizedInteger(len(digits.lstrip("-")))


DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer)


def _too_deep_at(text: str) -> int:
    """Position of the first bracket beyond MAX_LEVELS."""
    level = 0
    for found in BRACKETS.finditer(text):
        level += {"[": 1, "{": 1, "]": -1, "}": -1}.get(found.group(), 0)
        if level > MAX_LEVELS:
            return found.start()
    return 0
