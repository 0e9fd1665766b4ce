"""Which columns hold which part of a record: the ecosystem's usual names, in one table.

A layout is known by the parts that a kind of record needs; the first of KINDS whose parts all have a column is taken,
from the one that says most to the one that says least. Other names are mapped by `data.columns`, and a mapped part is
looked for in that column alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

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
OPINIONS = ("rating", "vote", "feedback", "verdict", "correct", "is_correct", "accepted", "is_accepted", "preferred")
OPINIONS = (
    *OPINIONS,
    "is_preferred",
    "liked",
    "good",
    "is_good",
    "passed",
    "approved",
    "upvoted",
    "helpful",
    "success",
)
OPINIONS = (*OPINIONS, "is_chosen", "accept", "correctness")
"""Columns that are a label where every row has true, false or a thumb there, and are unused elsewhere."""

KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("preference", ("chosen", "rejected")),
    ("steps", ("prompt", "steps", "labels")),
    ("conversation", ("messages",)),
    ("answer", ("prompt", "completion")),
    ("prompt", ("prompt",)),
    ("text", ("text",)),
)
"""The parts that each kind of layout needs; all others are used where they are there."""


@dataclass(frozen=True)
class Layout:
    """How the rows of a table are read."""

    kind: str
    """One of KINDS."""
    parts: Mapping[str, tuple[str, ...]]
    """The columns of the table that may hold each part."""
    mapped: frozenset[str]
    """The parts for which `data.columns` names a column."""
    repeats: bool = False
    """True where every answer begins with its prompt, which is then cut off."""


def recognise(columns: Collection[str], mapped: Collection[str], opinions: Collection[str]) -> Layout | None:
    """The layout of a table with these columns; None where there is none.

    `mapped` are the parts that `data.columns` names a column for, `opinions` those of OPINIONS that hold labels.
    """
    spellings = {part: (part,) if part in mapped else known for part, known in PARTS.items()}
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
    for kind, needs in KINDS:
        if all(parts[part] for part in needs):
            return Layout(kind, parts, frozenset(mapped))
    return None


def _there(columns: Collection[str], name: str) -> tuple[str, ...]:
    return (name,) if name in columns else ()
