"""The hand-written queries by category: how many were right, and each answer with what was thought of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from postrain.jsonl import Record

MOST_ANSWERS = 40
"""Of a category; all of them stand in queries.jsonl."""


@dataclass(frozen=True)
class Asked:
    """One wording and its answer."""

    query: str
    prompt: str
    response: str
    right: bool
    why: str


@dataclass(frozen=True)
class Category:
    """What was asked of one kind."""

    name: str
    asked: tuple[Asked, ...]

    @property
    def right(self) -> int:
        """How many answers were right."""
        return sum(one.right for one in self.asked)

    @property
    def shown(self) -> tuple[Asked, ...]:
        """As many as a page can bear."""
        return self.asked[:MOST_ANSWERS]


def by_category(records: Sequence[Record]) -> list[Category]:
    """The categories in the order they were asked in."""
    found: dict[str, list[Asked]] = {}
    for record in records:
        for wording in wordings(record):
            prompt, response = wording.get("prompt"), wording.get("response")
            if isinstance(prompt, str) and isinstance(response, str):
                asked = Asked(
                    _text(record.get("row")), prompt, response, wording.get("right") is True, _text(wording.get("why"))
                )
                found.setdefault(_text(record.get("category")) or "other", []).append(asked)
    return [Category(name.replace("_", " "), tuple(asked)) for name, asked in found.items()]


def wordings(record: Record) -> list[Record]:
    """The ways a query was asked, each with its answer."""
    found = record.get("wordings")
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
