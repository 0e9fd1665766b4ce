"""Values that JSON, CSV and Parquet allow and that training cannot use: refused by place and column, or replaced.

Half surrogate pairs and NUL characters are not text: they become U+FFFD and are counted. Keys that stand twice in one
object, numbers of thousands of digits and nesting beyond every real data set are refused. NaN and infinities are left
to those who read the column (fields.number).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from postrain.errors import ConfigError

MOST_LEVELS = 100
MOST_DIGITS = 1000
NOT_TEXT = re.compile("[\ud800-\udfff\0]")
REPLACEMENT = "\ufffd"
REPLACED = "half a surrogate pair or NUL replaced by U+FFFD"
BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]')


@dataclass(frozen=True)
class Oversized:
    """An integer that is too long to be converted."""

    digits: int


class Repeated(dict[str, Any]):
    """A JSON object in which a key stands twice."""

    key = ""


def decode(text: str) -> Any:
    """The value of a JSON text. Raises json.JSONDecodeError, also where it is nested too deeply to be read.

    What `usable` refuses is marked as Oversized or Repeated, because only the reader of a row can name its place.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_int=_integer)
    except RecursionError:
        raise json.JSONDecodeError(f"nested deeper than {MOST_LEVELS} levels", text, _deep(text)) from None


def usable(values: Mapping[str, Any], where: str) -> tuple[dict[str, Any], set[str]]:
    """The values of a row as text, numbers, lists and objects that can be used, and what has been replaced in them.

    Raises ConfigError that names the place and the column.
    """
    replaced: set[str] = set()
    if isinstance(values, Repeated):
        raise ConfigError(f"{where}: the column {values.key!r:.60} stands twice; remove one of the two")
    return {_text(name): _usable(value, name, where, replaced, 1) for name, value in values.items()}, replaced


def _usable(value: Any, column: str, where: str, replaced: set[str], level: int) -> Any:
    if isinstance(value, str):
        if NOT_TEXT.search(value) is None:
            return value
        replaced.add(f"{REPLACED} in {_text(column)!r:.60}")
        return type(value)(_text(value))
    if isinstance(value, Oversized):
        raise ConfigError(
            f"{where}: {column!r:.60} holds a number of {value.digits} digits; at most {MOST_DIGITS} can be read"
        )
    if isinstance(value, Repeated):
        raise ConfigError(f"{where}: {column!r:.60} holds an object with the key {value.key!r:.60} twice; remove one")
    if value is None or isinstance(value, bool | int | float):
        return value
    if not isinstance(value, Mapping | list | tuple):
        # Dates, decimals and bytes of Parquet files; run folders hold JSON.
        return str(value)
    if level >= MOST_LEVELS:
        raise ConfigError(f"{where}: {column!r:.60} is nested deeper than {MOST_LEVELS} levels; correct the row")
    if isinstance(value, list | tuple):
        return [_usable(item, column, where, replaced, level + 1) for item in value]
    return {
        _text(name) if isinstance(name, str) else name: _usable(item, column, where, replaced, level + 1)
        for name, item in value.items()
    }


def _text(value: str) -> str:
    return NOT_TEXT.sub(REPLACEMENT, value)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    marked = Repeated(found)
    seen: set[str] = set()
    marked.key = next(key for key, _ in pairs if key in seen or seen.add(key))
    return marked


def _integer(digits: str) -> int | Oversized:
    return int(digits) if len(digits) <= MOST_DIGITS else Oversized(len(digits.lstrip("-")))


def _deep(text: str) -> int:
    """The place of the first bracket beyond the levels that are allowed."""
    level = 0
    for found in BRACKETS.finditer(text):
        level += {"[": 1, "{": 1, "]": -1, "}": -1}.get(found.group(), 0)
        if level > MOST_LEVELS:
            return found.start()
    return 0
