"""Maps the columns of a table to the parts of a record, and records which columns a row uses.

PARTS lists the column names in common use for each part. The layout of a table is the row format with the lowest rank
whose needed parts all have a column (`row_format`, in the files of `kinds/`). `data.columns` maps other names; a mapped
part is read from that column only. Fields records the columns and message fields that a record uses. Unused columns
stay with the record and are listed by the audit; columns that would change the meaning of a row (images, tools of
plain text) are refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from postrain.data.values import Binary, Cell
from postrain.formatting import shortened

if TYPE_CHECKING:  # records.py imports this file
    from postrain.data.records import Record

PARTS: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation"),
    "prompt": ("prompt", "instruction", "question", "query", "problem"),
    "completion": ("completion", "response", "output"),
    "chosen": ("chosen", "chosen_messages", "chosen_response", "preferred_output"),
    "rejected": ("rejected", "rejected_messages", "rejected_response", "non_preferred_output"),
    "margin": ("margin",),
    "response1": ("response1", "response_1", "response_a"),
    "response2": ("response2", "response_2", "response_b"),
    "preference": ("preference", "overall_preference", "preference_strength"),
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
    "tools": ("tools", "functions"),
    "tool_calls": ("tool_calls", "answers"),
    "text": ("text",),
    "weight": ("weight", "loss_weight", "sample_weight"),
}
"""Known column names of each part."""
COLUMNS = (
    *("text", "messages", "prompt", "completion", "system", "history", "input", "chosen", "rejected"),
    *("response1", "response2", "preference", "margin", "label", "weight", "steps", "labels", "answer", "tools"),
    "tool_calls",
)
"""The keys of `data.columns`: parts, and `answer`, which rewards read."""
LABEL_LIKE_COLUMNS = (
    *("rating", "vote", "feedback", "verdict", "correct", "is_correct", "accepted", "is_accepted", "preferred"),
    *("is_preferred", "liked", "good", "is_good", "passed", "approved", "upvoted", "helpful", "success", "is_chosen"),
    *("accept", "correctness"),
)
"""Columns used as the label if every row holds true, false, 👍 or 👎 there; unused otherwise."""
TOOLS = "prompts and conversations have tools, and an answer has calls; this layout has neither"
MEDIA = "only text is supported"
REFUSED_COLUMNS: Mapping[str, str] = {
    **dict.fromkeys(("tools", "functions", "tool_calls", "function_call"), TOOLS),
    **dict.fromkeys(("image", "images", "audio", "audios", "video", "videos", "image_url"), MEDIA),
    "chat_template_kwargs": "chat templates get no arguments from a row",
}
"""Columns that change the meaning of a row, with the reason why they are not supported."""
EMPTY_JSON = ("[]", "{}", "null")
"""Empty values of tool columns, which often hold JSON as text."""
MAX_NAMES, MAX_NAME_LENGTH = 20, 60


@dataclass(frozen=True)
class RowFormat:
    """Columns from which a row becomes a record of one kind."""

    name: str
    needs: tuple[str, ...]
    """Parts that the table must have; all other parts are optional."""
    rank: int
    """Of the matching formats the one with the lowest rank is used."""
    build: Callable[[int, Fields], Record]
    """Returns the record of a row; raises Malformed or Unusable."""
    answers: tuple[str, ...] = ()
    """Parts that may repeat the prompt at their beginning."""


FORMATS: dict[str, RowFormat] = {}
"""All formats by name; importing the files of `kinds/` registers them."""


Build = TypeVar("Build", bound="Callable[[int, Fields], Record]")


def row_format(
    name: str, *, needs: tuple[str, ...], rank: int, answers: tuple[str, ...] = ()
) -> Callable[[Build], Build]:
    """Registers a function that returns the record of a row; see RowFormat."""

    def register(build: Build) -> Build:
        FORMATS[name] = RowFormat(name, needs, rank, build, answers)
        return build

    return register


@dataclass(frozen=True)
class Layout:
    """Format and column mapping of a table."""

    format: RowFormat
    parts: Mapping[str, tuple[str, ...]]
    """The table's columns that may hold each part."""
    mapped: frozenset[str]
    """Parts that `data.columns` maps to a column."""
    repeats_prompt: bool = False
    """True if every answer in the table begins with its prompt; the prompt is then removed from the answers."""


def find_layout(columns: Collection[str], mapped: Collection[str], label_like: Collection[str]) -> Layout | None:
    """The layout of a table with these columns; None if no format matches.

    `mapped` are the parts that `data.columns` maps; `label_like` are the LABEL_LIKE_COLUMNS that hold labels.
    """
    needed = {part: (part,) for known in FORMATS.values() for part in known.needs}
    spellings = {part: (part,) if part in mapped else known for part, known in {**needed, **PARTS}.items()}
    parts = {part: tuple(name for name in known if name in columns) for part, known in spellings.items()}
    # `answer` is the completion of a `question`. Next to `prompt` or another completion column it is the reference of a
    # reward. `solution` is the completion of a `problem`. `input` is the prompt if there is no other prompt column.
    if not parts["prompt"]:
        parts |= {"prompt": _if_present(columns, "input"), "input": _if_present(columns, "context")}
    if not parts["completion"] and "prompt" not in columns:
        solution = _if_present(columns, "solution") if "problem" in columns else ()
        parts["completion"] = solution or _if_present(columns, "answer")
    if not parts["label"]:
        parts["label"] = tuple(label_like)
    fitting = [known for known in FORMATS.values() if all(parts[part] for part in known.needs)]
    return Layout(min(fitting, key=lambda known: known.rank), parts, frozenset(mapped)) if fitting else None


def _if_present(columns: Collection[str], name: str) -> tuple[str, ...]:
    return (name,) if name in columns else ()


class Malformed(Exception):
    """A row that does not match its layout; the message states what was expected."""


class Unusable(Exception):
    """A well-formed row that cannot be used for training; the message states the reason."""


class Empty(Unusable):
    """A row whose prompt, completion, conversation or message is null or an empty list."""

    def __init__(self, part: str) -> None:
        super().__init__(f"empty {part}")
        self.part = part


class Fields:
    """The columns of one row under the layout of its table."""

    def __init__(self, values: Mapping[str, Any], layout: Layout) -> None:
        self.values, self.layout = values, layout
        self.used: set[str] = set()
        """Columns that the record uses."""
        self.unused: set[str] = set()
        """Unused fields in used columns, such as messages.id."""
        self.repaired: set[str] = set()
        """Descriptions of the changes made to the row."""
        self.warned: set[str] = set()
        """Descriptions of what the row should not have, but is trained on."""

    def peek(self, part: str) -> tuple[str, Any] | None:
        """The column of a part and its value; None if the row has none. Does not mark the column as used.

        Raises Malformed if two columns hold the part with different values.
        """
        columns = self.layout.parts[part]
        if not columns:
            return None
        named = [name for name in columns if name in self.values]
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
        """Like `peek`, and marks all columns of the part as used. Raises Malformed for bytes that are not text, and for
        NaN."""
        columns = self.layout.parts[part]
        if not columns:
            return None
        self.used.update(columns)
        found = self.peek(part)
        if found and isinstance(found[1], Binary):
            raise Malformed(f"{found[0]} holds bytes that are not UTF-8 text; convert the column to text")
        if found and isinstance(found[1], float) and math.isnan(found[1]):
            raise Malformed(
                f"{found[0]} is NaN, a missing value of pandas; drop the row, as with "
                f"frame.dropna(subset=[{found[0]!r}]), or replace NaN by null"
            )
        return found

    def optional(self, part: str) -> tuple[str, Any] | None:
        """Like `find`, but None if the part is empty."""
        found = self.find(part)
        return None if found is None or empty(found[1]) else found

    def needed(self, part: str) -> tuple[str, Any]:
        """Like `find`, but raises Malformed if the row has no such column."""
        found = self.find(part)
        if found is None:
            missing = f"that data.columns.{part} names" if part in self.layout.mapped else self.layout.parts[part][0]
            raise Malformed(f"the column {missing} is missing; the columns here are {names(self.values)}")
        return found

    def rest(self) -> dict[str, Any]:
        """The unused columns."""
        return {name: value for name, value in self.values.items() if name not in self.used}

    def check_unused(self) -> None:
        """Raises Malformed for an unused column that would change the meaning of the row."""
        for name, value in self.rest().items():
            expected_calls = name == "tool_calls" and self.layout.parts["tools"]  # for rewards
            if name in REFUSED_COLUMNS and not expected_calls and not empty(value) and value not in EMPTY_JSON:
                raise Malformed(f"has the column {name}: {REFUSED_COLUMNS[name]}; remove the column or the row")


def empty(value: Any) -> bool:
    """True for null, blank text and empty lists and objects."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, Sequence | Mapping) and not value)


def absent(value: Any) -> bool:
    """True for null and an empty list, but not for blank text."""
    return empty(value) and not isinstance(value, str)


def text(value: Any, name: str) -> str:
    """Checks that a value is text. Raises Malformed."""
    if not isinstance(value, str):
        raise Malformed(f"{name} has to be text, got {value!r:.60}")
    return str(value)


def number(value: Any, name: str) -> float:
    """Converts a number, or a CSV cell that holds one, to a finite float. Raises Malformed."""
    try:
        found = float(value) if isinstance(value, Cell | int | float) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise Malformed(f"{name} has to be a finite number, got {value!r:.40}")
    return found


def names(columns: Sequence[str] | Mapping[str, Any]) -> str:
    """Column names for a message of one line."""
    cut = [shortened(name, MAX_NAME_LENGTH) for name in columns]
    shown = [name if name.isprintable() and name else repr(name) for name in cut]
    more = f" and {len(shown) - MAX_NAMES} more" if len(shown) > MAX_NAMES else ""
    return (", ".join(shown[:MAX_NAMES]) or "(none)") + more
