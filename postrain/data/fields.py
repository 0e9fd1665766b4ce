"""One row on its way to a record, with a note of every column and field that has been used.

Nothing is left out silently: the columns that no reader asked for stay with the record and are named by the audit, and
those that would change what a row means (tools, images, weights) are refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from postrain.data.layouts import Layout
from postrain.data.readers import Cell

TOOLS = "tool calls cannot be learned yet"
MEDIA = "only text can be learned"
REFUSED_COLUMNS: Mapping[str, str] = {
    **dict.fromkeys(("tools", "functions", "tool_calls", "function_call"), TOOLS),
    **dict.fromkeys(("image", "images", "audio", "audios", "video", "videos", "image_url"), MEDIA),
    "chat_template_kwargs": "chat templates get no arguments from a row",
}
"""Columns that change what a row means, with the reason why they cannot be used."""
EMPTY_JSON = ("[]", "{}", "null")
"""Columns of tools often hold JSON as text."""
MOST_NAMES, LONGEST_NAME = 20, 60


class Malformed(Exception):
    """A row that is not what its layout promises; the text says what was expected."""


class Unusable(Exception):
    """A row that is well formed but cannot be learned from; the text says why."""


class Fields:
    """The columns of one row under the layout of its table."""

    def __init__(self, values: Mapping[str, Any], layout: Layout) -> None:
        self.values, self.layout = values, layout
        self.used: set[str] = set()
        """Columns that a record has been made of."""
        self.unused: set[str] = set()
        """Fields inside of used columns that nothing was made of, such as messages.id."""
        self.repaired: set[str] = set()
        """What has been changed in the row."""

    def peek(self, part: str) -> tuple[str, Any] | None:
        """The column that holds a part, and its value; None where the row has none. Does not use it.

        Raises Malformed where two columns hold the part differently.
        """
        named = [name for name in self.layout.parts[part] if name in self.values]
        filled = [name for name in named if not empty(self.values[name])]
        if not filled:
            return (named[0], self.values[named[0]]) if named else None
        first, *others = filled
        for other in others:
            if self.values[other] != self.values[first]:
                raise Malformed(
                    f"{first} and {other} both hold the {part} and differ; name the one to use with "
                    f"data.columns.{part}={first}"
                )
        return first, self.values[first]

    def find(self, part: str) -> tuple[str, Any] | None:
        """As `peek`, and uses the column and those that say the same."""
        self.used.update(self.layout.parts[part])
        return self.peek(part)

    def optional(self, part: str) -> tuple[str, Any] | None:
        """As `find`, and None where the part is empty."""
        found = self.find(part)
        return None if found is None or empty(found[1]) else found

    def needed(self, part: str) -> tuple[str, Any]:
        """As `find`; raises Malformed where the row has no such column."""
        found = self.find(part)
        if found is None:
            missing = self.layout.parts[part][0]
            raise Malformed(f"the column {missing} is missing; the columns here are {names(self.values)}")
        return found

    def rest(self) -> dict[str, Any]:
        """The columns that have not been used."""
        return {name: value for name, value in self.values.items() if name not in self.used}

    def refuse_rest(self) -> None:
        """Raises Malformed where a column is left that would change what the row means."""
        for name, value in self.rest().items():
            if name in REFUSED_COLUMNS and not empty(value) and value not in EMPTY_JSON:
                raise Malformed(f"has the column {name}: {REFUSED_COLUMNS[name]}; remove the column or the row")


def empty(value: Any) -> bool:
    """True for a column or field that says nothing, as files with the same columns in every row have them."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, Sequence | Mapping) and not value)


def text(value: Any, name: str) -> str:
    """A value that has to be text."""
    if not isinstance(value, str):
        raise Malformed(f"{name} has to be text, got {value!r:.60}")
    return str(value)


def number(value: Any, name: str) -> float:
    """A value that has to be a finite number; the cell of a CSV file may hold one."""
    try:
        found = float(value) if isinstance(value, Cell | int | float) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise Malformed(f"{name} has to be a finite number, got {value!r:.40}")
    return found


def is_list(value: Any) -> bool:
    """True for a sequence that is not text."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def names(columns: Sequence[str] | Mapping[str, Any]) -> str:
    """Names of columns for a message of one line."""
    cut = [name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..." for name in columns]
    shown = [name if name.isprintable() and name else repr(name) for name in cut]
    more = f" and {len(shown) - MOST_NAMES} more" if len(shown) > MOST_NAMES else ""
    return (", ".join(shown[:MOST_NAMES]) or "(none)") + more
