"""Reads CSV and TSV text; every cell is text.

The delimiter is the one that splits the first rows like the header. In tab-separated text a cell may begin with a quote
that is a letter: if the quotes do not fit, all of them are.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from postrain.data.values import Cell, refuse_repeated
from postrain.errors import ConfigError

DELIMITERS = ",;\t"
"""In order of preference."""
SAMPLE_CHARACTERS = 100_000
# The default limit of 131,072 characters is too short for documents.
csv.field_size_limit(2**31 - 1)

Rows = Iterator[tuple[int, dict[str, Cell]]]


class Invalid(ConfigError):
    """Quotes that do not fit."""


def read_delimited(text: str, name: str, *, tabs: bool) -> Rows:
    """Rows with the line in which they begin; `tabs` for a .tsv file. Raises ConfigError."""
    delimiter = "\t" if tabs and "\t" in text.partition("\n")[0] else _delimiter(text, "\t" if tabs else ",")
    if delimiter != "\t":
        return _rows(text, name, delimiter)
    try:
        return iter([*_rows(text, name, delimiter)])
    except ConfigError as problem:
        try:
            return iter([*_rows(text, name, delimiter, quotes=False)])
        except ConfigError:
            if isinstance(problem, Invalid):
                raise
        raise problem from None


def _delimiter(text: str, default: str) -> str:
    """The delimiter with the largest share of the first rows that have as many cells as the header; `default` if none
    splits the header."""
    best, largest = default, (-1.0, 0)
    sample = text[:SAMPLE_CHARACTERS]
    for delimiter in DELIMITERS:
        try:
            header, *rows = [*filter(None, csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter))]
        except (csv.Error, ValueError):
            continue
        if len(text) > len(sample):
            rows = rows[:-1]  # may be incomplete
        # Of equal ones, the delimiter is the one without spaces behind it: "prompt;completion (a, b)".
        share = sum(len(cells) == len(header) for cells in rows) / max(1, len(rows))
        found = share, -sum(cell.startswith(" ") for cell in header)
        if len(header) > 1 and found > largest:
            best, largest = delimiter, found
    return best


def _rows(text: str, name: str, delimiter: str, *, quotes: bool = True) -> Rows:
    quoting = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    lines = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter, quoting=quoting)
    try:
        header = next(lines, [])
        refuse_repeated(header, name)
        line = lines.line_num
        for cells in lines:
            if cells and len(cells) != len(header):
                raise ConfigError(f"{name}, line {line + 1}: expected {len(header)} cells as in line 1")
            if cells:
                yield line + 1, dict(zip(header, map(Cell, cells), strict=True))
            line = lines.line_num
    except csv.Error as error:
        raise Invalid(f"{name}, line {lines.line_num}: not valid CSV ({error})") from None
