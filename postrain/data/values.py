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

MAX_LEVELS = 100
MAX_DIGITS = 1000
NOT_TEXT = re.compile("[\ud800-\udfff\0]")
REPLACEMENT = "\ufffd"
REPLACED = "half a surrogate pair or NUL replaced by U+FFFD"
BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]')


@dataclass(frozen=True)
class OversizedInteger:
    """An integer that is too long to be converted."""

    digits: int


class DuplicateKeys(dict[str, Any]):
    """A JSON object in which a key stands twice."""

    key = ""


def decode(text: str) -> Any:
    """The value of a JSON text. Raises json.JSONDecodeError, also where it is nested too deeply to be read.

    What `clean_values` refuses is marked as OversizedInteger or DuplicateKeys: only the reader of a row knows its
    line.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_int=_integer)
    except RecursionError:
        raise json.JSONDecodeError(f"nested deeper than {MAX_LEVELS} levels", text, _deep(text)) from None


def clean_values(values: Mapping[str, Any], where: str) -> tuple[dict[str, Any], set[str]]:
    """The values of a row as text, numbers, lists and objects that can be used, and what has been replaced in them.

    Raises ConfigError that names the place and the column.
    """
    replaced: set[str] = set()
    if isinstance(values, DuplicateKeys):
        raise ConfigError(f"{where}: the column {values.key!r:.60} stands twice; remove one of the two")
    return {_text(name): _clean(value, name, where, replaced, 1) for name, value in values.items()}, replaced


def _clean(value: Any, column: str, where: str, replaced: set[str], level: int) -> Any:
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
    if not isinstance(value, Mapping | list | tuple):
        # Dates, decimals and bytes of Parquet files; run folders hold JSON.
        return str(value)
    if level >= MAX_LEVELS:
        raise ConfigError(f"{where}: {column!r:.60} is nested deeper than {MAX_LEVELS} levels; correct the row")
    if isinstance(value, list | tuple):
        return [_clean(item, column, where, replaced, level + 1) for item in value]
    return {
        _text(name) if isinstance(name, str) else name: _clean(item, column, where, replaced, level + 1)
        for name, item in value.items()
    }


def _text(value: str) -> str:
    return NOT_TEXT.sub(REPLACEMENT, value)


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


def _deep(text: str) -> int:
    """The place of the first bracket beyond the levels that are allowed."""
    level = 0
    for found in BRACKETS.finditer(text):
        level += {"[": 1, "{": 1, "]": -1, "}": -1}.get(found.group(), 0)
        if level > MAX_LEVELS:
            return found.start()
    return 0
