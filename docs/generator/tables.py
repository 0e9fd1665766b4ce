"""Markdown tables and first comments of YAML files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; vertical bars in cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;').strip() for cell in line)} |" for line in lines)


def code(text: str) -> str:
    """Inline code, or nothing for an empty text."""
    return f"`{text}`" if text else ""


def comment_lines(file: Path) -> list[str]:
    """The comment at the top of a YAML file, without the package line."""
    lines: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.removeprefix("#").removeprefix(" "))
    return lines


def sentence(file: Path) -> str:
    """The first comment line of a YAML file: what the option is."""
    return escaped(next(iter(comment_lines(file)), "").removesuffix("."))


def escaped(text: str) -> str:
    """Prose of a docstring or comment with `<` escaped, so that it is not read as HTML."""
    return text.replace("<", "&lt;")
