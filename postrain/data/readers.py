"""Reads files into rows: JSON lines, JSON, CSV, Parquet, Arrow, text, compressed or not. A row keeps its line or index.

What cannot be read is refused with the line it stands on. What the columns mean is left to formats.py, folders of files
to files.py.
"""

from __future__ import annotations

import csv
import io
import json
import lzma
import re
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from postrain.data.values import clean_values, decode
from postrain.errors import ConfigError

# Running text is cut into documents of about this many characters, at blank lines: far fewer rows than paragraphs,
# and enough of them for a held-out part. Text without blank lines is cut at twice that, at a line's or a word's end.
DOCUMENT_CHARACTERS = 2000
UNITS = {".jsonl": "line", ".ndjson": "line", ".csv": "line", ".tsv": "line", ".txt": "line", ".json": "item"}
DELIMITERS = ",;\t"
"""Of CSV files; the first of them that is in the header."""
JSON_LIST = re.compile(rb"(\xef\xbb\xbf)?\s*\[\s*\{")
JSON_LINE = re.compile(rb"(\xef\xbb\xbf)?\s*\{[^\n]*\}\s*(\n|$)")
COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".xz": "xz"}
# Cells of CSV files are as long as the text they hold; the module's own limit is 131,072 characters.
csv.field_size_limit(2**31 - 1)


class Cell(str):
    """A cell of a CSV file, where the truth value true cannot be told from the word."""


@dataclass(frozen=True)
class Row:
    """One row of a source, before anyone has asked what it means."""

    number: int
    """Its line, from 1, or its index in a data set, from 0; in a table of several files, counted on."""
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """The rows of one source."""

    name: str
    """What a person calls the source: a file name, a data set."""
    unit: str
    """What `Row.number` counts: line, item or row."""
    rows: tuple[Row, ...]
    repaired: Mapping[str, int] = field(default_factory=dict)
    """How many rows hold values that have been changed, by what was done."""
    parts: tuple[tuple[int, str], ...] = ()
    """Of a table of several files, what each adds to the numbers of its rows, and its name; in order."""

    def where(self, number: int) -> str:
        """A row in words, for error messages."""
        if not self.parts:
            return f"{self.name}, {self.unit} {number}"
        added, name = self.parts[bisect([added for added, _ in self.parts], number) - 1]
        return f"{name}, {self.unit} {number - added}"

    def head(self, rows: int | None) -> Table:
        """The first rows; None is all of them."""
        return self if rows is None else Table(self.name, self.unit, self.rows[:rows], self.repaired, self.parts)


def make_table(name: str, unit: str, rows: Iterator[tuple[int, Mapping[str, Any]]]) -> Table:
    """A table of numbered rows, after their values have been looked at."""
    made: list[Row] = []
    repaired: Counter[str] = Counter()
    for number, raw in rows:
        values, replaced = clean_values(raw, f"{name}, {unit} {number}")
        made.append(Row(number, values))
        repaired.update(replaced)
    return Table(name, unit, tuple(made), repaired)


def joined(name: str, tables: Sequence[Table]) -> Table:
    """The rows of several tables with the same unit, numbered on."""
    rows: list[Row] = []
    parts: list[tuple[int, str]] = []
    repaired: Counter[str] = Counter()
    for table in tables:
        added = rows[-1].number + 1 if rows else 0
        parts.append((added, table.name))
        rows += [Row(added + row.number, row.values) for row in table.rows]
        repaired.update(table.repaired)
    return Table(name, tables[0].unit, tuple(rows), repaired, tuple(parts))


def suffix_of(file: Path) -> str:
    """The suffix that says how a file is read, without that of its compression."""
    return (file.with_suffix("") if file.suffix.lower() in COMPRESSED else file).suffix.lower()


def read_file(path: str) -> Table:
    """All rows of a file, by its suffix."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(f"data.path: there is no file {path}; give the path of a {_suffixes()} file")
    suffix = suffix_of(file)
    if suffix not in READERS:
        raise ConfigError(
            f"{path}: cannot read {file.suffix or 'a file without suffix'}; expected one of {_suffixes()}, as it is or "
            f"compressed ({', '.join(COMPRESSED)})"
        )
    raw = _bytes(file)
    if suffix in (".json", ".jsonl", ".ndjson"):
        # Both names are used for both.
        suffix = ".json" if JSON_LIST.match(raw) else ".jsonl" if JSON_LINE.match(raw) else suffix
    table = make_table(path, UNITS.get(suffix, "row"), READERS[suffix](raw, path))
    if not table.rows:
        raise ConfigError(f"{path} is empty; expected at least one row")
    return table


def _suffixes() -> str:
    return ", ".join(READERS)


def _bytes(file: Path) -> bytes:
    """What is in a file, decompressed."""
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
        reason = " ".join(str(error).split())[:120]
        kind = f"not a whole {compression} file" if compression else "cannot be read"
        raise ConfigError(f"{file}: {kind} ({reason})") from None


def _text(raw: bytes, name: str) -> str:
    """A file as text. A byte-order mark, as spreadsheets write it, is not part of it."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{name}, line {line}: not UTF-8 text; save the file as UTF-8") from None


Numbered = Iterator[tuple[int, Mapping[str, Any]]]


def _json_lines(raw: bytes, name: str) -> Numbered:
    # Not splitlines(): a JSON string may hold characters that Python, but not JSON lines, takes for a line's end.
    for number, line in enumerate(_text(raw, name).split("\n"), start=1):
        if line.strip():
            yield number, _object(_parse(line, name, number), f"{name}, line {number}")


def _parse(text: str, name: str, number: int) -> Any:
    try:
        return decode(text)
    except json.JSONDecodeError as error:
        line = number + error.lineno - 1
        raise ConfigError(
            f"{name}, line {line}: not valid JSON ({error.msg} at column {error.colno}); correct or remove the line"
        ) from None


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(
            f'{where}: expected an object such as {{"prompt": ..., "completion": ...}}, got {value!r:.40}'
        )
    return value


def _json(raw: bytes, name: str) -> Numbered:
    text = _text(raw, name)
    value = {} if text.lstrip().startswith("{") else _parse(text, name, 1) if text.strip() else []
    if not isinstance(value, list):
        raise ConfigError(f"{name}: expected a list of objects, or one object a line")
    for number, item in enumerate(value):
        yield number, _object(item, f"{name}, item {number}")


def _csv(raw: bytes, name: str) -> Numbered:
    text = _text(raw, name)
    delimiter = next((sign for sign in DELIMITERS if sign in text.partition("\n")[0]), ",")
    lines = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    try:
        header = next(lines, [])
        _refuse_repeated(header, name)
        line = lines.line_num
        for cells in lines:
            if cells and len(cells) != len(header):
                raise ConfigError(f"{name}, line {line + 1}: expected {len(header)} cells as in line 1")
            if cells:
                yield line + 1, dict(zip(header, map(Cell, cells), strict=True))
            line = lines.line_num
    except csv.Error as error:
        raise ConfigError(f"{name}, line {lines.line_num}: not valid CSV ({error})") from None


def _refuse_repeated(columns: Sequence[str], name: str) -> None:
    """Raises ConfigError for a name that two columns have."""
    for place, column in enumerate(columns):
        if column in columns[:place]:
            raise ConfigError(
                f"{name}: the columns {columns.index(column) + 1} and {place + 1} are both named {column!r}; "
                "rename one of them"
            )


def _parquet(raw: bytes, name: str) -> Numbered:
    import pyarrow  # noqa: PLC0415 - start-up time
    import pyarrow.parquet  # noqa: PLC0415

    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(raw))
        _refuse_repeated(file.schema_arrow.names, name)
        rows = file.read().to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: cannot be read as Parquet ({' '.join(str(error).split())[:120]})") from None
    yield from enumerate(rows)


def _arrow(raw: bytes, name: str) -> Numbered:
    """A stream, as `datasets` writes it, or a file of Arrow's own format, as Feather."""
    import pyarrow  # noqa: PLC0415 - start-up time

    buffer = pyarrow.BufferReader(raw)
    open_table = pyarrow.ipc.open_file if raw.startswith(b"ARROW1") else pyarrow.ipc.open_stream
    try:
        table = open_table(buffer).read_all()
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(f"{name}: cannot be read as Arrow ({' '.join(str(error).split())[:120]})") from None
    _refuse_repeated(table.column_names, name)
    yield from enumerate(table.to_pylist())


def _documents(raw: bytes, name: str) -> Numbered:
    """Running text, cut at blank lines; blank lines inside a document stay."""
    held: list[str] = []
    first = 1
    length = 0
    for number, line in _lines(_text(raw, name).replace("\r\n", "\n")):
        blank = not line.strip()
        if (blank and length >= DOCUMENT_CHARACTERS) or (held and length + len(line) > 2 * DOCUMENT_CHARACTERS):
            yield first, {"text": "\n".join(held)}
            held, length = [], 0
        if held or not blank:
            first = first if held else number
            held.append(line)
            length += len(line)
    if text := "\n".join(held).rstrip():
        yield first, {"text": text}


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers; a line of several documents' length is cut at spaces."""
    longest = 2 * DOCUMENT_CHARACTERS
    for number, line in enumerate(text.split("\n"), start=1):
        while len(line) > longest:
            cut = line.rfind(" ", 1, longest) if " " in line[1:longest] else longest
            yield number, line[:cut]
            line = line[cut:]
        yield number, line


READERS: Mapping[str, Callable[[bytes, str], Numbered]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".txt": _documents,
}
