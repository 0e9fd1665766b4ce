"""Reads files into rows: JSON lines, JSON, CSV, Parquet, plain text. Each row keeps its line or index.

What cannot be read is refused with the line it stands on. What the columns mean is left to formats.py.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from postrain.types import ConfigError

# Running text is cut into documents of about this many characters, at blank lines: far fewer rows than paragraphs,
# and enough of them for a held-out part.
DOCUMENT_CHARACTERS = 2000
UNITS = {".jsonl": "line", ".csv": "line", ".txt": "line", ".json": "item"}


class Cell(str):
    """A cell of a CSV file, where nothing tells the truth value true from the word."""


@dataclass(frozen=True)
class Row:
    """One row of a source, before anyone has asked what it means."""

    number: int
    """Its line, from 1, or its index in a data set, from 0."""
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """The rows of one source."""

    name: str
    """What a person calls the source: a file name, a data set."""
    unit: str
    """What `Row.number` counts: line, item or row."""
    rows: tuple[Row, ...]

    def where(self, number: int) -> str:
        """A row in words, for error messages."""
        return f"{self.name}, {self.unit} {number}"


def read_file(path: str) -> Table:
    """All rows of a file, by its suffix."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(f"data.path: there is no file {path}; give the path of a {_suffixes()} file")
    reader = READERS.get(file.suffix.lower())
    if reader is None:
        raise ConfigError(
            f"{path}: cannot read {file.suffix or 'a file without suffix'}; expected one of {_suffixes()}"
        )
    rows = tuple(reader(file))
    if not rows:
        raise ConfigError(f"{path} is empty; expected at least one row")
    return Table(path, UNITS.get(file.suffix.lower(), "row"), rows)


def _suffixes() -> str:
    return ", ".join(READERS)


def _text(file: Path) -> str:
    """A file as text. A byte-order mark, as spreadsheets write it, is not part of it."""
    raw = file.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{file}, line {line}: not UTF-8 text; save the file as UTF-8") from None


def _json_lines(file: Path) -> Iterator[Row]:
    # Not splitlines(): a JSON string may hold characters that Python, but not JSON lines, takes for a line's end.
    for number, line in enumerate(_text(file).split("\n"), start=1):
        if line.strip():
            yield Row(number, _object(_parse(line, file, number), f"{file}, line {number}"))


def _parse(text: str, file: Path, number: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = number + error.lineno - 1
        raise ConfigError(
            f"{file}, line {line}: not valid JSON ({error.msg} at column {error.colno}); correct or remove the line"
        ) from None


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(
            f'{where}: expected an object such as {{"prompt": ..., "completion": ...}}, got {value!r:.40}'
        )
    return value


def _json(file: Path) -> Iterator[Row]:
    value = _parse(_text(file), file, 1) if _text(file).strip() else []
    if not isinstance(value, list):
        raise ConfigError(f"{file}: expected a list of objects; a file with one object a line is named .jsonl")
    for number, item in enumerate(value):
        yield Row(number, _object(item, f"{file}, item {number}"))


def _csv(file: Path) -> Iterator[Row]:
    lines = csv.DictReader(io.StringIO(_text(file), newline=""), strict=True)
    line = 1
    try:
        for values in lines:
            if None in values or None in values.values():
                raise ConfigError(f"{file}, line {line + 1}: expected {len(lines.fieldnames or ())} cells as in line 1")
            yield Row(line + 1, {name: Cell(cell) for name, cell in values.items()})
            line = lines.line_num
    except csv.Error as error:
        raise ConfigError(f"{file}, line {lines.line_num}: not valid CSV ({error})") from None


def _parquet(file: Path) -> Iterator[Row]:
    import pyarrow  # noqa: PLC0415 - start-up time
    import pyarrow.parquet  # noqa: PLC0415

    try:
        table = pyarrow.parquet.read_table(file)
    except pyarrow.ArrowInvalid as error:
        raise ConfigError(f"{file}: not a Parquet file ({' '.join(str(error).split())[:120]})") from None
    for number, values in enumerate(table.to_pylist()):
        yield Row(number, values)


def _documents(file: Path) -> Iterator[Row]:
    """Running text, cut at blank lines; blank lines inside a document stay."""
    held: list[str] = []
    first = 1
    for number, line in enumerate(_text(file).replace("\r\n", "\n").split("\n"), start=1):
        if not line.strip() and sum(map(len, held)) >= DOCUMENT_CHARACTERS:
            yield Row(first, {"text": "\n".join(held)})
            held = []
        elif held or line.strip():
            first = first if held else number
            held.append(line)
    if text := "\n".join(held).rstrip():
        yield Row(first, {"text": text})


READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
    ".txt": _documents,
}
