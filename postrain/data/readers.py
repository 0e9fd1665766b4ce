"""Reads files into rows: JSON lines, JSON, CSV, Parquet, Arrow and text, also compressed.

A row keeps its line or index, and errors name it. Not included: the meaning of columns (formats.py) and folders of
files (files.py).
"""

from __future__ import annotations

import io
import json
import lzma
import re
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from postrain.data.delimited import read_delimited
from postrain.data.documents import documents
from postrain.data.layouts import PARTS, names
from postrain.data.reading_progress import tracked
from postrain.data.values import Struct, clean_values, decode, refuse_repeated
from postrain.errors import ConfigError, one_line

UNITS = {".jsonl": "line", ".ndjson": "line", ".csv": "line", ".tsv": "line", ".txt": "line", ".json": "item"}
JSON = (".json", ".jsonl", ".ndjson")
JSON_WHOLE = re.compile(rb"(\xef\xbb\xbf)?\s*(\[\s*\{|\{\s*\n)")
"""Beginning of a list of objects, or of an object over several lines."""
JSON_LINE = re.compile(rb"(\xef\xbb\xbf)?\s*\{[^\n]*\}\s*(\n|$)")
COLUMN_NAMES = frozenset({"answer", "solution", *(name for known in PARTS.values() for name in known)})
MESSAGE_FIELDS = (("role", "content"), ("from", "value"))
COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".xz": "xz"}


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source, before conversion to a record."""

    number: int
    """Line, or row given from Python, from 1; index in a data set, from 0. Numbered consecutively over the files of a
    table."""
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """The rows of one source."""

    name: str
    """Name of the source for messages: a file or a data set."""
    unit: str
    """Unit of `Row.number`: line, item or row."""
    rows: tuple[Row, ...]
    repaired: Mapping[str, int] = field(default_factory=dict)
    """Number of rows with changed values, by the change."""
    parts: tuple[tuple[int, str], ...] = ()
    """For a table of several files: the offset of each file's row numbers and its name, in order."""

    def where(self, number: int) -> str:
        """Describes the location of a row for error messages."""
        if not self.parts:
            return f"{self.name}, {self.unit} {number}"
        offset, name = self.parts[bisect([offset for offset, _ in self.parts], number) - 1]
        return f"{name}, {self.unit} {number - offset}"

    @property
    def last(self) -> int:
        """The largest row number; -1 without rows."""
        return self.rows[-1].number if self.rows else -1

    def shifted(self, offset: int) -> Table:
        """The same rows with larger numbers, for tables that are read together."""
        rows = tuple(Row(row.number + offset, row.values) for row in self.rows)
        parts = tuple((first + offset, name) for first, name in self.parts) or ((offset, self.name),)
        return Table(self.name, self.unit, rows, self.repaired, parts)

    def head(self, rows: int | None) -> Table:
        """The first rows; None returns all."""
        return self if rows is None else Table(self.name, self.unit, self.rows[:rows], self.repaired, self.parts)


def make_table(name: str, unit: str, rows: Iterator[tuple[int, Mapping[str, Any]]]) -> Table:
    """A table of numbered rows with cleaned values. Raises ConfigError for unsupported values."""
    made: list[Row] = []
    repaired: Counter[str] = Counter()
    for number, raw in rows:
        values, replaced = clean_values(raw, f"{name}, {unit} {number}")
        made.append(Row(number, values))
        repaired.update(replaced)
    return Table(name, unit, tuple(made), repaired)


def join_tables(name: str, tables: Sequence[Table]) -> Table:
    """The rows of several tables with the same unit, numbered consecutively."""
    rows: list[Row] = []
    parts: list[tuple[int, str]] = []
    repaired: Counter[str] = Counter()
    for table in tables:
        offset = rows[-1].number + 1 if rows else 0
        parts.append((offset, table.name))
        rows += [Row(offset + row.number, row.values) for row in table.rows]
        repaired.update(table.repaired)
    return Table(name, tables[0].unit, tuple(rows), repaired, tuple(parts))


def suffix_of(file: Path) -> str:
    """The suffix of a file without that of its compression, in lower case."""
    return (file.with_suffix("") if file.suffix.lower() in COMPRESSED else file).suffix.lower()


def existing_file(path: str) -> Path:
    """The path of a file. Raises ConfigError if there is none."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(f"data.path: there is no file {path}; give the path of a {SUFFIXES} file")
    return file


def read_file(path: str) -> Table:
    """All rows of a file, read by its suffix. Raises ConfigError."""
    file = existing_file(path)
    suffix = suffix_of(file)
    if suffix not in READERS:
        raise ConfigError(
            f"{path}: cannot read {file.suffix or 'a file without suffix'}; expected one of {SUFFIXES}, as it is or "
            f"compressed ({', '.join(COMPRESSED)})"
        )
    raw = _bytes(file)
    if suffix in JSON:
        # Both suffixes are in use for both formats.
        suffix = ".json" if JSON_WHOLE.match(raw) else ".jsonl" if JSON_LINE.match(raw) else suffix
    table = make_table(path, UNITS.get(suffix, "row"), READERS[suffix](raw, path))
    if not table.rows:
        raise ConfigError(f"{path} is empty; expected at least one row")
    return _unwrapped(table) if suffix in JSON else table


def _bytes(file: Path) -> bytes:
    """The decompressed content of a file."""
    compression = COMPRESSED.get(file.suffix.lower())
    try:
        raw = file.read_bytes()
        if compression is None:
            return raw
        if compression == "xz":
            return lzma.decompress(raw)
        import pyarrow  # noqa: PLC0415 - start-up time

        return pyarrow.CompressedInputStream(pyarrow.BufferReader(raw), compression).read()
    except (OSError, EOFError, lzma.LZMAError) as error:
        reason = one_line(error, 120)
        kind = f"not a complete {compression} file" if compression else "cannot be read"
        raise ConfigError(f"{file}: {kind} ({reason})") from None


def _text(raw: bytes, name: str, first: int = 1) -> str:
    """Decodes UTF-8 from line `first` on and removes a byte-order mark of the file, which spreadsheets write."""
    try:
        return raw.decode("utf-8-sig" if first == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + first
        raise ConfigError(f"{name}, line {line}: not UTF-8 text; save the file as UTF-8") from None


Numbered = Iterator[tuple[int, Mapping[str, Any]]]


def _json_lines(raw: bytes, name: str) -> Numbered:
    # Not splitlines(): a JSON string may contain characters that Python treats as line ends and JSON lines does not.
    for number, line in enumerate(tracked(io.BytesIO(raw), "reading rows", raw.count(b"\n")), start=1):
        text = _text(line.removesuffix(b"\n"), name, number)
        if text.strip():
            yield number, _object(_parse(text, name, number), f"{name}, line {number}")


def _parse(text: str, name: str, number: int) -> Any:
    try:
        return decode(text)
    except json.JSONDecodeError as error:
        raise _not_json(error, name, number) from None


def _not_json(error: json.JSONDecodeError, name: str, number: int) -> ConfigError:
    """The error of a text that begins in line `number`."""
    line = number + error.lineno - 1
    return ConfigError(
        f"{name}, line {line}: not valid JSON ({error.msg} at column {error.colno}); correct or remove the line"
    )


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(
            f'{where}: expected an object such as {{"prompt": ..., "completion": ...}}, got {value!r:.40}'
        )
    return value


def _json(raw: bytes, name: str) -> Numbered:
    text = _text(raw, name)
    try:
        found = decode(text) if text.strip() else []
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":  # several objects, each over several lines
            raise _not_json(error, name, 1) from None
        found = None
    if not isinstance(found, list | dict):
        raise ConfigError(f"{name}: expected a list of objects, or one object per line")
    for number, item in enumerate([found] if isinstance(found, dict) else found):
        yield number, _object(item, f"{name}, item {number}")


def _unwrapped(table: Table) -> Table:
    """The rows of a file whose only object holds them as a list, such as {"version": 1, "data": [...]}.

    Raises ConfigError if it holds several lists.
    """
    values = table.rows[0].values
    lists = [name for name, value in values.items() if _holds_rows(value)]
    if len(table.rows) > 1 or not lists or not COLUMN_NAMES.isdisjoint(values):
        return table
    if len(lists) > 1:
        raise ConfigError(f"{table.name}: holds several lists of objects ({names(lists)}); write each to its own file")
    return replace(table, unit="item", rows=tuple(Row(number, item) for number, item in enumerate(values[lists[0]])))


def _holds_rows(value: Any) -> bool:
    """True for a list of objects other than messages."""
    objects = isinstance(value, list) and all(isinstance(item, Mapping) for item in value)
    return objects and bool(value) and not any({first, second} <= value[0].keys() for first, second in MESSAGE_FIELDS)


def _csv(raw: bytes, name: str) -> Numbered:
    return read_delimited(_text(raw, name), name, tabs=False)


def _tsv(raw: bytes, name: str) -> Numbered:
    return read_delimited(_text(raw, name), name, tabs=True)


def _parquet(raw: bytes, name: str) -> Numbered:
    import pyarrow  # noqa: PLC0415 - start-up time
    import pyarrow.parquet  # noqa: PLC0415

    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(raw))
        refuse_repeated(file.schema_arrow.names, name)
        rows = file.read().to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: cannot be read as Parquet ({one_line(error, 120)})") from None
    yield from enumerate(map(Struct, rows))


def _arrow(raw: bytes, name: str) -> Numbered:
    """Reads an Arrow stream (written by `datasets`) or an Arrow file (Feather)."""
    import pyarrow  # noqa: PLC0415 - start-up time

    buffer = pyarrow.BufferReader(raw)
    open_table = pyarrow.ipc.open_file if raw.startswith(b"ARROW1") else pyarrow.ipc.open_stream
    try:
        table = open_table(buffer).read_all()
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(f"{name}: cannot be read as Arrow ({one_line(error, 120)})") from None
    refuse_repeated(table.column_names, name)
    yield from enumerate(map(Struct, table.to_pylist()))


def _documents(raw: bytes, name: str) -> Numbered:
    return documents(_text(raw, name).replace("\r\n", "\n"))


READERS: Mapping[str, Callable[[bytes, str], Numbered]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".txt": _documents,
}
SUFFIXES = ", ".join(READERS)
