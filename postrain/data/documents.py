"""Splits running text into documents at blank lines."""

from __future__ import annotations

from collections.abc import Iterator

DOCUMENT_CHARACTERS = 2000
"""Approximate characters of a document of running text, which is split at blank lines. Text without blank lines is
split at twice this length, at the end of a line or word. This length gives enough rows for a held-out part and far
fewer than one per paragraph."""


def documents(text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Documents as the column `text`, each with its first line; blank lines within a document stay."""
    held: list[str] = []
    first = 1
    length = 0
    for number, line in _lines(text):
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
    """Lines with their numbers; very long lines are split at spaces."""
    longest = 2 * DOCUMENT_CHARACTERS
    for number, line in enumerate(text.split("\n"), start=1):
        while len(line) > longest:
            cut = line.rfind(" ", 1, longest) if " " in line[1:longest] else longest
            yield number, line[:cut]
            line = line[cut:]
        yield number, line
