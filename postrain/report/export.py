"""A table of a page as a file for a paper: CSV, or LaTeX that needs the booktabs package only."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from postrain.config.masking import hidden
from postrain.jsonl import atomic_write_text
from postrain.report.blocks import Cell, Table
from postrain.report.pictures import REMEDY
from postrain.runs.folder import writing

STEM = "table"
PARTS = ("", "low", "high", "n")
"""Columns of a measured value in CSV: the value, its 95 % interval, and the number of observations."""
ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "–": "--", "…": r"\dots{}", "→": r"$\rightarrow$", "−": "$-$", "‖": r"$\Vert$", "√": r"$\surd$",
    "·": r"$\cdot$", "β": r"$\beta$", "×": r"$\times$", "\"": r"\textquotedbl{}",
}  # fmt: skip


def write_table(folder: Path, table: Table, suffix: str) -> Path:
    """Writes table.csv or table.tex. Raises ConfigError where it cannot be written."""
    path = folder / f"{STEM}.{suffix}"
    with writing(path, REMEDY):
        atomic_write_text(path, hidden(TABLE_FORMATS[suffix](table)))
    return path


def to_csv(table: Table) -> str:
    """Unrounded numbers; a column of measured values is followed by those of its interval and n, where known."""
    parts = [_parts([cells[index] for _, cells in table.rows]) for index in range(len(table.columns) - 1)]
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    names = [f"{name} {PARTS[p]}".strip() for name, of in zip(table.columns[1:], parts, strict=True) for p in of]
    writer.writerow([table.columns[0] or "name", *names])
    for name, cells in table.rows:
        values = [_value(cell, part) for cell, of in zip(cells, parts, strict=True) for part in of]
        writer.writerow([name, *values])
    return lines.getvalue()


def _parts(cells: Sequence[Cell]) -> list[int]:
    measured = [cell.numbers for cell in cells if cell.numbers]
    return [0] + [part for part in (1, 2, 3) if any(numbers[part] is not None for numbers in measured)]


def _value(cell: Cell, part: int) -> str:
    if cell.numbers is None:
        return _text(cell) if part == 0 else ""
    value = cell.numbers[part]
    return "" if value is None else repr(value)


def _text(cell: Cell) -> str:
    """The text of a cell without its inline elements."""
    text = cell.text
    return ("" if text == "–" else text) if not hasattr(text, "striptags") else text.striptags()  # pyright: ignore


def to_tex(table: Table) -> str:
    """A tabular with booktabs rules: rounded values, their 95 % intervals in brackets, the best in bold."""
    text_columns = [index for index, name in enumerate(table.columns) if index == 0 or name in table.words]
    alignment = "".join("l" if index in text_columns else "r" for index in range(len(table.columns)))
    rows = [" & ".join([escape(name), *map(_tex, cells)]) for name, cells in table.rows]
    return "\n".join([
        "% \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{{alignment}}}",
        "\\toprule",
        " & ".join(map(escape, table.columns)) + r" \\",
        "\\midrule",
        *(rf"{row} \\" for row in rows),
        "\\bottomrule",
        "\\end{tabular}",
        "",
    ])  # fmt: skip


def _tex(cell: Cell) -> str:
    text = escape(_text(cell) or "–")
    # A hyphen before a number is a minus.
    text = re.sub(r"^([+-])(?=[\d.])", lambda found: f"${found[1]}$", text)
    text = rf"\textbf{{{text}}}" if cell.best else text
    return rf"{text} {{\footnotesize [{escape(cell.small)}]}}" if cell.small else text


def escape(text: str) -> str:
    """Text that LaTeX prints unchanged; characters that pdflatex lacks become their names' ASCII or a question mark."""
    escaped = "".join(ESCAPES.get(letter, letter) for letter in str(text))
    return " ".join("".join(letter if ord(letter) < 0x250 else "?" for letter in escaped).split())


TABLE_FORMATS: Mapping[str, Callable[[Table], str]] = {"csv": to_csv, "tex": to_tex}
