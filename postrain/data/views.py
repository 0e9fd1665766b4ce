"""One kind of record seen as another: preferences as demonstrations of the chosen, anything with a prompt as prompts.

A view never invents: what the other kind needs and the data does not say is refused, naming both kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from postrain.data.records import (
    Demonstration,
    Judgement,
    Message,
    Messages,
    Preference,
    Prompt,
    Record,
    Steps,
    Text,
    plain_text,
)
from postrain.types import ConfigError

View = Callable[[Record], Record | None]


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
            f"{f' (which can also serve as {possible})' if possible else ''}; choose another data= or method="
        )
    seen = [view(record) for record in records]
    kept = tuple(record for record in seen if record is not None)
    lost = len(seen) - len(kept)
    return kept, {f"{have} that is no {kind}": lost} if lost else {}


def _demonstration(record: Record, prompt: Messages, answer: str) -> Record:
    messages = (*prompt, Message("assistant", answer))
    return Demonstration(row=record.row, columns=record.columns, messages=messages)


def _prompt(record: Record, prompt: Messages) -> Record:
    return Prompt(row=record.row, columns=record.columns, prompt=prompt)


def _chosen(record: Record) -> Record | None:
    assert isinstance(record, Preference)
    return _demonstration(record, record.prompt, record.chosen)


def _desirable(record: Record) -> Record | None:
    assert isinstance(record, Judgement)
    return _demonstration(record, record.prompt, record.completion) if record.label else None


def _sound(record: Record) -> Record | None:
    assert isinstance(record, Steps)
    return _demonstration(record, record.prompt, " ".join(record.steps)) if all(record.labels) else None


def _judged(record: Record) -> Record | None:
    assert isinstance(record, Steps)
    whole = Judgement(row=record.row, prompt=record.prompt, completion=" ".join(record.steps), label=all(record.labels))
    return replace(whole, columns=record.columns)


def _asked(record: Record) -> Record | None:
    if isinstance(record, Demonstration):
        return _prompt(record, record.messages[:-1])
    assert isinstance(record, Preference | Judgement | Steps)
    return _prompt(record, record.prompt)


def _running(record: Record) -> Record | None:
    assert isinstance(record, Demonstration)
    return Text(row=record.row, columns=record.columns, text=plain_text(record.messages))


VIEWS: Mapping[tuple[str, str], View] = {
    ("Preference", "Demonstration"): _chosen,
    ("Judgement", "Demonstration"): _desirable,
    ("Steps", "Demonstration"): _sound,
    ("Steps", "Judgement"): _judged,
    ("Preference", "Prompt"): _asked,
    ("Judgement", "Prompt"): _asked,
    ("Steps", "Prompt"): _asked,
    ("Demonstration", "Prompt"): _asked,
    ("Demonstration", "Text"): _running,
}
