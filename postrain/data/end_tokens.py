"""Removes end tokens that the rows hold as text: encoding adds the end token of an answer or a document itself."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, TypeVar

from postrain.data.conversation import Message
from postrain.data.records import Record

REPEATED_END = "end token in the text removed"
ANSWERS = ("messages", "prompt", "completion", "chosen", "rejected", "steps")
"""Fields of records with answers: texts, messages, or tuples of them."""
ANSWER_COLUMNS = ("answer", "solution")
"""Columns for rewards that repeat an answer."""

R = TypeVar("R", bound=Record)


def without_end_tokens(record: R, ends: tuple[str, ...], eos: str) -> R:
    """The record without `ends`, the end tokens of the template, at the end of its answers.

    Running text loses `eos` only; an empty `eos` keeps it unchanged. Returns the same object if nothing changes.
    """
    tokens = {**dict.fromkeys(ANSWERS, ends), "text": (eos,) if eos else ()}
    changes: dict[str, Any] = {}
    for one in fields(record):
        if one.name in tokens:
            before = getattr(record, one.name)
            after = _stripped(before, tokens[one.name])
            if after != before:
                changes[one.name] = after
    if not changes:
        return record
    columns = {
        name: _stripped(value, ends) if name in ANSWER_COLUMNS and isinstance(value, str) else value
        for name, value in record.columns.items()
    }
    return replace(record, columns=columns, **changes)


def _stripped(value: Any, ends: tuple[str, ...]) -> Any:
    if isinstance(value, tuple):
        return tuple(_stripped(item, ends) for item in value)
    if isinstance(value, Message):
        content = _without_end(value.content, ends) if value.role == "assistant" else value.content
        return value if content == value.content else replace(value, content=content)
    return _without_end(value, ends)


def _without_end(text: str, ends: tuple[str, ...]) -> str:
    while (bare := text.rstrip()).endswith(ends):
        text = next(bare.removesuffix(end) for end in ends if bare.endswith(end))
    return text
