"""Append-only JSON Lines files with one record per line, safe against killed processes.

A line is written by a single system call, so a killed process leaves at most one incomplete line, at the end. `rewind`
drops it and every record after a given update, so that a resumed run's file equals that of an uninterrupted run.

Imports neither torch nor lightning: the report reads run folders without them.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def atomic_write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Replaces the content of `path` atomically; a reader sees the old or the new content.

    `private` creates the file with mode 0600.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # Left by a killed process with the same pid, or a symlink planted there; O_EXCL does not follow links.
    temporary.unlink(missing_ok=True)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> Record:
    """The JSON object in a file; {} if it is missing, damaged or not `is_bounded`."""
    try:
        found = _parse(path.read_bytes())
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return {}
    return found if found and is_bounded(found) else {}


def records_of(found: Any) -> list[Record]:
    """The mappings in a list; [] for another value."""
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def is_bounded(value: Any, depth: int = 64, size: int = 1_000_000) -> bool:
    """Whether containers are nested at most `depth` deep and hold at most `size` values, counting repeated ones.

    YAML can contain itself, or a million references to one list. Check a value before recursing over it.
    """
    level = [value]
    for _ in range(depth):
        level = [item for each in level for item in _items(each)]
        size -= len(level)
        if not level or size < 0:
            return size >= 0
    return False


def _items(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()


def number(value: object) -> float | None:
    """A record's value as a float; also for "nan", "inf" and "-inf". None if it is not a number."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        return float(value) if abs(value) < 2**1000 else math.inf if value > 0 else -math.inf
    if isinstance(value, float):
        return value
    return float(value) if value in ("nan", "inf", "-inf") and isinstance(value, str) else None


def update_of(record: Record) -> float:
    """The update of a record; 0 if it has none."""
    return number(record.get("update")) or 0.0


def plain(value: Any) -> Any:
    """Converts a value for JSON: tuples become lists, keys strings, non-finite numbers "nan", "inf" and "-inf"."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


@dataclass(frozen=True)
class JsonLines:
    """One append-only file of records."""

    path: Path

    def append(self, *records: Mapping[str, Any]) -> None:
        """Appends the records in one write."""
        lines = [json.dumps(plain(record), ensure_ascii=False, allow_nan=False) + "\n" for record in records]
        data = "".join(lines).encode("utf-8", errors="replace")
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            while data:
                data = data[os.write(descriptor, data) :]
        finally:
            os.close(descriptor)

    def read(self) -> list[Record]:
        """Every complete record, in order; empty for a missing file."""
        return self.examine()[0]

    def examine(self) -> tuple[list[Record], int]:
        """Every complete record, and the number of damaged lines, left by a killed process or by editing."""
        if not self.path.is_file():
            return [], 0
        parsed = [_parse(line) for line in self.path.read_bytes().split(b"\n") if line.strip()]
        records = [record for record in parsed if record is not None]
        return records, len(parsed) - len(records)

    def rewind(self, update: int) -> None:
        """Drops incomplete lines and every record after `update`; leaves the file untouched if there are none."""
        if not self.path.is_file():
            return
        before = self.path.read_bytes()
        kept = [line for line in before.split(b"\n") if _belongs(line, update)]
        after = b"".join(line + b"\n" for line in kept)
        if after != before:
            atomic_write_text(self.path, after.decode("utf-8"))  # every line kept is UTF-8: it has been parsed


def _belongs(line: bytes, update: int) -> bool:
    record = _parse(line)
    reached = None if record is None else number(record.get("update"))
    return reached is not None and reached <= update


def _parse(line: bytes) -> Record | None:
    try:
        # Decoded here: json.loads would also detect UTF-16 and UTF-32 in bytes.
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def leaves(path: str, value: Any, *, is_leaf: Callable[[Any], bool] = lambda value: False) -> Iterator[tuple[str, Any]]:
    """The values in nested mappings and lists, each with its path, as in `reward.weights[0]`; `path` is the prefix.

    A value for which `is_leaf` is true is not divided.
    """
    if isinstance(value, Mapping) and not is_leaf(value):
        for name, item in value.items():
            yield from leaves(f"{path}.{name}" if path else str(name), item, is_leaf=is_leaf)
    elif is_list(value) and not is_leaf(value):
        for index, item in enumerate(value):
            yield from leaves(f"{path}[{index}]", item, is_leaf=is_leaf)
    else:
        yield path, value


def is_list(value: Any) -> bool:
    """True for a sequence other than text."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
