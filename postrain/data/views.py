"""One kind of record seen as another: preferences as two judgements each, anything with a prompt as prompts.

A view never invents: what the other kind needs and the data does not say is refused, naming both kinds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

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

View = Callable[[Record], tuple[Record, ...]]


def convert(records: Sequence[Record], kind: str, *, source: str) -> tuple[tuple[Record, ...], dict[str, int]]:
    """The records as `kind`, and how many have nothing to say there (a thumb down is no demonstration), by reason."""
    have = type(records[0]).__name__ if records else kind
    if have == kind:
        return tuple(records), {}
    view = VIEWS.get((have, kind))
    if view is None:
        possible = " or ".join(wanted for held, wanted in VIEWS if held == have)
        raise ConfigError(
            f"data: this method learns from {kind} records, but {source} holds {have} records"
            f"{_half(records[0])}"
            f"{f' (which can also serve as {possible})' if possible else ''}; choose another data= or method="
        )
    seen = [view(record) for record in records]
    # A pair is seen as nothing only where its sides are equal and would be thumbs up and down for the same.
    reason = EQUAL_SIDES if have == Preference.__name__ else f"{have} that is no {kind}"
    lost = Counter(reason for made in seen if not made)
    return tuple(record for made in seen for record in made), dict(lost)


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
    return (Text(row=record.row, columns=record.columns, text=plain_text(record.messages)),)


VIEWS: Mapping[tuple[str, str], View] = {
    ("Preference", "Demonstration"): _chosen,
    ("Preference", "Judgement"): _both,
    ("Judgement", "Demonstration"): _desirable,
    ("Steps", "Demonstration"): _sound,
    ("Steps", "Judgement"): _judged,
    ("Preference", "Prompt"): _asked,
    ("Judgement", "Prompt"): _asked,
    ("Steps", "Prompt"): _asked,
    ("Demonstration", "Prompt"): _asked,
    ("Demonstration", "Text"): _running,
}
