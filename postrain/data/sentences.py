"""Splits texts into sentences: the steps of a process reward model, and the parts that an attack on a reward edits."""

from __future__ import annotations

import re

SENTENCE_END = r"(?<=[.!?])\s+|\n+"
"""After sentences and at line ends."""


def sentences(text: str, end: str | re.Pattern[str] = SENTENCE_END) -> list[str]:
    """The pieces between the matches of `end`, without surrounding white space and without empty ones."""
    return [piece for part in re.split(end, text) if (piece := part.strip())]
