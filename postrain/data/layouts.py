"""Which columns hold which part of a record, and one row on its way to a record.

PARTS names the columns of the ecosystem in one table. A layout is known by the parts that a format of rows needs
(`row_format`, in the files of `kinds/`); the first format whose parts all have a column is taken, from the one that
says most to the one that says least. Other names are mapped by `data.columns`, and a mapped part is looked for in that
column alone. Fields notes every column and field that has been used. Nothing is left out silently: the columns that no
reader asked for stay with the record and are named by the audit, and those that would change what a row means (tools,
images, weights) are refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from postrain.data.readers import Cell

if TYPE_CHECKING:  # records.py stands on this file
    from postrain.data.records import Record

PARTS: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation"),
    "prompt": ("prompt", "instruction", "question", "query", "problem"),
    "completion": ("completion", "response", "output"),
    "chosen": ("chosen", "chosen_messages", "chosen_response", "preferred_output"),
    "rejected": ("rejected", "rejected_messages", "rejected_response", "non_preferred_output"),
    "margin": ("margin",),
    "label": (
        "label",
        "kto_tag",
        "kto_label",
        "binary_label",
        "desirable",
        "is_desirable",
        "thumbs_up",
        "thumbs",
        "thumb",
    ),
    "system": ("system", "system_prompt", "system_message"),
    "history": ("history", "chat_history", "conversation_history"),
    "input": ("input", "context"),
    "steps": ("steps", "completions"),
    "labels": ("labels",),
    "text": ("text",),
    "weight": ("weight", "loss_weight", "sample_weight"),
}
"""The names that a part goes by."""
COLUMNS = (
    *("text", "messages", "prompt", "completion", "system", "history", "input", "chosen", "rejected"),
    *("margin", "label", "weight", "steps", "labels", "answer"),
)
"""The parts, and a reward's answer, for which `data.columns` can name a column."""
LABEL_LIKE_COLUMNS = (
    *("rating", "vote", "feedback", "verdict", "correct", "is_correct", "accepted", "is_accepted", "preferred"),
    *("is_preferred", "liked", "good", "is_good", "passed", "approved", "upvoted", "helpful", "success", "is_chosen"),
    *("accept", "correctness"),
)
"""Columns that are a label where every row has true, false or a thumb there, and are unused elsewhere."""
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
MAX_NAMES, MAX_NAME_LENGTH = 20, 60


@dataclass(frozen=True)
class RowFormat:
    """A way in which rows hold one kind of record."""

    name: str
    needs: tuple[str, ...]
    """The parts that a table has to have; all others are used where they are there."""
    rank: int
    """Of the formats that a table has the parts of, the one with the lowest is taken."""
    build: Callable[[int, Fields], Record]
    """The record of a row; raises Malformed or Unusable."""
    answers: tuple[str, ...] = ()
    """The parts that may begin with the prompt once more."""


FORMATS: dict[str, RowFormat] = {}
"""Every format by its name, filled as the files of `kinds/` are imported."""


Build = TypeVar("Build", bound="Callable[[int, Fields], Record]")


def row_format(
    name: str, *, needs: tuple[str, ...], rank: int, answers: tuple[str, ...] = ()
) -> Callable[[Build], Build]:
    """Registers a function that builds the record of a row; see RowFormat."""

    def register(build: Build) -> Build:
        FORMATS[name] = RowFormat(name, needs, rank, build, answers)
        return build

    return register


@dataclass(frozen=True)
class Layout:
    """How the rows of a table are read."""

    format: RowFormat
    parts: Mapping[str, tuple[str, ...]]
    """The columns of the table that may hold each part."""
    mapped: frozenset[str]
    """The parts for which `data.columns` names a column."""
    repeats: bool = False
    """True where every answer begins with its prompt, which is then cut off."""


def find_layout(columns: Collection[str], mapped: Collection[str], opinions: Collection[str]) -> Layout | None:
    """The layout of a table with these columns; None where there is none.

    `mapped` are the parts that `data.columns` names a column for; `opinions` are the LABEL_LIKE_COLUMNS that hold
    labels.
    """
    needed = {part: (part,) for known in FORMATS.values() for part in known.needs}
    spellings = {part: (part,) if part in mapped else known for part, known in {**needed, **PARTS}.items()}
    parts = {part: tuple(name for name in known if name in columns) for part, known in spellings.items()}
    # A question is answered by `answer`. Beside `prompt`, and beside an answer of another name, it is the reference
    # that a reward reads. `solution` is the worked answer to a `problem`, and `input` asks where nothing else does.
    if not parts["prompt"]:
        parts |= {"prompt": _there(columns, "input"), "input": _there(columns, "context")}
    if not parts["completion"] and "prompt" not in columns:
        worked = _there(columns, "solution") if "problem" in columns else ()
        parts["completion"] = worked or _there(columns, "answer")
    if not parts["label"]:
        parts["label"] = tuple(opinions)
    fitting = [known for known in FORMATS.values() if all(parts[part] for part in known.needs)]
    return Layout(min(fitting, key=lambda known: known.rank), parts, frozenset(mapped)) if fitting else None


def _there(columns: Collection[str], name: str) -> tuple[str, ...]:
    return (name,) if name in columns else ()


class Malformed(Exception):
    """A row that does not match its layout; the message says what was expected."""


class Unusable(Exception):
    """A well-formed row that cannot be trained on; the message says why."""


class Fields:
    """The columns of one row under the layout of its table."""

    def __init__(self, values: Mapping[str, Any], layout: Layout) -> None:
        self.values, self.layout = values, layout
        self.used: set[str] = set()
        """Columns used for the record."""
        self.unused: set[str] = set()
        """Fields inside of used columns that nothing was made of, such as messages.id."""
        self.repaired: set[str] = set()
        """Repairs of the row."""

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

    def check_unused(self) -> None:
        """Raises Malformed where a column is left that would change what the row means."""
        for name, value in self.rest().items():
            if name in REFUSED_COLUMNS and not empty(value) and value not in EMPTY_JSON:
                raise Malformed(f"has the column {name}: {REFUSED_COLUMNS[name]}; remove the column or the row")


def empty(value: Any) -> bool:
    """True for an empty column or field, as in files with the same columns in every row."""
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
    cut = [name if len(name) <= MAX_NAME_LENGTH else f"{name[:MAX_NAME_LENGTH]}..." for name in columns]
    shown = [name if name.isprintable() and name else repr(name) for name in cut]
    more = f" and {len(shown) - MAX_NAMES} more" if len(shown) > MAX_NAMES else ""
    return (", ".join(shown[:MAX_NAMES]) or "(none)") + more
