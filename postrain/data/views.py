"""One kind of record seen as another: preferences as two judgements each, anything with a prompt as prompts.

A view never invents: what the other kind needs and the data does not say is refused, naming both kinds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from postrain.data.fields import names
from postrain.data.records import (
    EQUAL_SIDES,
    Demonstration,
    Judgement,
    Message,
    Messages,
    Preference,
    Prompt,
    Record,
    Steps,
    Text,
    equal_sides,
    plain_text,
)
from postrain.types import ConfigError

Build = Callable[[Record], tuple[Record, ...]]


@dataclass(frozen=True)
class View:
    """How one kind of record is seen as another."""

    build: Build
    """The records seen in one; none where it has nothing to say there."""
    reason: str = ""
    """Why a record may have nothing to say."""
    unused: Callable[[Record], Sequence[str]] = lambda record: ()
    """The parts of a record that are left out."""


@dataclass(frozen=True)
class Converted:
    """Records seen as one kind."""

    records: tuple[Record, ...]
    dropped: Mapping[str, int] = field(default_factory=dict)
    """How many had nothing to say, by reason."""
    unused: Mapping[str, int] = field(default_factory=dict)
    """How many had a part that is left out, by its name."""


def convert(records: Sequence[Record], kind: str, *, source: str) -> Converted:
    """The records as `kind`. Raises ConfigError, naming both kinds, where the data does not say what `kind` needs."""
    have = type(records[0]).__name__ if records else kind
    view = View(lambda record: (record,), unused=_margin) if have == kind else VIEWS.get((have, kind))
    if view is None:
        possible = " or ".join(wanted for held, wanted in VIEWS if held == have)
        raise ConfigError(
            f"data: this method learns from {kind} records, but {source} holds {have} records"
            f"{_half(records[0])}"
            f"{f' (which can also serve as {possible})' if possible else ''}; choose another data= or method="
            f"{_others(records[0], kind)}"
        )
    seen = [view.build(record) for record in records]
    unused = Counter(part for record in records for part in view.unused(record))
    return Converted(
        tuple(record for made in seen for record in made), Counter(view.reason for made in seen if not made), unused
    )


def _margin(record: Record) -> tuple[str, ...]:
    return ("margin",) if isinstance(record, Preference) and record.margin else ()


def _rejected(record: Record) -> tuple[str, ...]:
    return ("rejected", *_margin(record))


def _answers(record: Record) -> tuple[str, ...]:
    """What a prompt leaves out of a record; not the answer to a question, which stays with it for rewards."""
    match record:
        case Demonstration():
            said = record.messages[-1].content
            return () if any(value == said for value in record.columns.values()) else ("completion",)
        case Preference():
            return ("chosen", *_rejected(record))
        case Steps():
            return ("steps", "labels")
    return ("completion", "label")


NEEDED: Mapping[str, tuple[str, ...]] = {
    "Demonstration": ("completion",),
    "Judgement": ("completion", "label"),
    "Preference": ("chosen", "rejected"),
    "Steps": ("steps", "labels"),
}
"""The parts that a prompt lacks to be another kind of record."""


def _others(record: Record, kind: str) -> str:
    """The columns of a prompt without an answer, which may hold what it lacks under another name."""
    if not isinstance(record, Prompt) or not record.columns or kind not in NEEDED:
        return ""
    mapped = " ".join(f"data.columns.{part}=NAME" for part in NEEDED[kind])
    return f", or name the columns it needs, of {names(record.columns)}: {mapped}"


def _half(record: Record) -> str:
    """What to say of a pair that lost a side, because a row with one side alone passes for something else."""
    sides = ("chosen", "rejected")
    there = [side for side in sides if side in record.columns]
    if len(there) != 1:
        return ""
    (missing,) = set(sides) - set(there)
    return f" (row {record.row} has {there[0]} but no column {missing})"


def _demonstration(record: Record, prompt: Messages, answer: str) -> tuple[Record, ...]:
    messages = (*prompt, Message("assistant", answer))
    return (Demonstration(row=record.row, columns=record.columns, messages=messages),)


def _judgement(record: Record, prompt: Messages, answer: str, label: bool) -> Record:
    return Judgement(row=record.row, columns=record.columns, prompt=prompt, completion=answer, label=label)


def _chosen(record: Record) -> tuple[Record, ...]:
    assert isinstance(record, Preference)
    return _demonstration(record, record.prompt, record.chosen)


def _both(record: Record) -> tuple[Record, ...]:
    assert isinstance(record, Preference)
    if equal_sides(record):
        return ()
    sides = ((record.chosen, True), (record.rejected, False))
    return tuple(_judgement(record, record.prompt, answer, label) for answer, label in sides)


def _desirable(record: Record) -> tuple[Record, ...]:
    assert isinstance(record, Judgement)
    return _demonstration(record, record.prompt, record.completion) if record.label else ()


def _sound(record: Record) -> tuple[Record, ...]:
    assert isinstance(record, Steps)
    return _demonstration(record, record.prompt, " ".join(record.steps)) if all(record.labels) else ()


def _judged(record: Record) -> tuple[Record, ...]:
    assert isinstance(record, Steps)
    return (_judgement(record, record.prompt, " ".join(record.steps), all(record.labels)),)


def _asked(record: Record) -> tuple[Record, ...]:
    if isinstance(record, Demonstration):
        return (Prompt(row=record.row, columns=record.columns, prompt=record.messages[:-1]),)
    assert isinstance(record, Preference | Judgement | Steps)
    return (Prompt(row=record.row, columns=record.columns, prompt=record.prompt),)


def _running(record: Record) -> tuple[Record, ...]:
    assert isinstance(record, Demonstration)
    if not all(message.learned for message in record.messages if message.role == "assistant"):
        return ()
    return (Text(row=record.row, columns=record.columns, text=plain_text(record.messages)),)


UNDESIRABLE = "answer labelled undesirable"
VIEWS: Mapping[tuple[str, str], View] = {
    ("Preference", "Demonstration"): View(_chosen, unused=_rejected),
    # A pair is two judgements unless its sides are equal, which would be thumbs up and down for the same.
    ("Preference", "Judgement"): View(_both, EQUAL_SIDES, _margin),
    ("Judgement", "Demonstration"): View(_desirable, UNDESIRABLE),
    ("Steps", "Demonstration"): View(_sound, "chain with a wrong step"),
    ("Steps", "Judgement"): View(_judged),
    ("Preference", "Prompt"): View(_asked, unused=_answers),
    ("Judgement", "Prompt"): View(_asked, unused=_answers),
    ("Steps", "Prompt"): View(_asked, unused=_answers),
    ("Demonstration", "Prompt"): View(_asked, unused=_answers),
    ("Demonstration", "Text"): View(_running, "answer of weight 0, which running text cannot hold"),
}
