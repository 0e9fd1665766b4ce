"""The kinds of record a method can learn from, whatever file or format they came in.

A record knows its row in the source to the end, for error messages and samples, and keeps every column that is not
part of its kind, for rewards and gold scores. Tokens come later (encode.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    """system, user or assistant."""
    content: str
    learned: bool = True
    """False for an answer that is part of the conversation and not imitated (weight 0)."""
    prefill: bool = False
    """True for the assistant's last message in a prompt, which is to be continued."""
    written: str | None = field(default=None, compare=False)
    """The turn with its speaker as a transcript writes it, for models without a chat template."""


Messages = tuple[Message, ...]
EQUAL_SIDES = "chosen equals rejected"
"""Why a preference says nothing."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What every record has."""

    row: int
    """Its number in the source: the line of a file, or the index in a data set."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Everything else that stood in the row."""


@dataclass(frozen=True, kw_only=True)
class Text(Record):
    """Running text."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Demonstration(Record):
    """A conversation to imitate."""

    messages: Messages
    """The last one is the assistant's."""


@dataclass(frozen=True, kw_only=True)
class Preference(Record):
    """Two completions of a prompt, one of them preferred."""

    prompt: Messages
    chosen: str
    rejected: str
    margin: float = 0.0
    """How much better the chosen one is said to be; 0 where the data does not say."""


@dataclass(frozen=True, kw_only=True)
class Judgement(Record):
    """A completion with a thumb up or down."""

    prompt: Messages
    completion: str
    label: bool
    """True where the completion is desirable."""


@dataclass(frozen=True, kw_only=True)
class Prompt(Record):
    """A prompt to continue; its columns are what a reward gets to know."""

    prompt: Messages


@dataclass(frozen=True, kw_only=True)
class Steps(Record):
    """A chain of reasoning, each step labelled right or wrong."""

    prompt: Messages
    steps: tuple[str, ...]
    labels: tuple[bool, ...]


def lessons(record: Demonstration, *, last_only: bool) -> bool:
    """True where an answer is learned: the last one, or any of them."""
    answers = [message for message in record.messages if message.role == "assistant"]
    return any(answer.learned for answer in (answers[-1:] if last_only else answers))


def user(text: str) -> Messages:
    """A prompt of one user message."""
    return (Message("user", text),)


def opened(prompt: Messages) -> Messages:
    """A prompt; if its last message is the assistant's, that one is to be continued."""
    *before, last = prompt
    return (*before, replace(last, prefill=last.role == "assistant"))


def plain_text(messages: Messages) -> str:
    """A prompt as a person wrote it: one message or a transcript as it stands, several messages under each other."""
    written = [message.written for message in messages if message.written is not None]
    if written and len(written) == len(messages):
        return "".join(written)
    return "\n\n".join(message.content for message in messages)


def content(record: Record) -> tuple[str, ...]:
    """All a record says, part by part: equal contents are duplicates."""
    match record:
        case Text():
            return (record.text,)
        case Demonstration():
            return tuple(message.content for message in record.messages)
        case Preference():
            return (plain_text(record.prompt), record.chosen, record.rejected)
        case Judgement():
            return (plain_text(record.prompt), record.completion)
        case Prompt():
            return (plain_text(record.prompt),)
        case Steps():
            return (plain_text(record.prompt), *record.steps)
    raise TypeError(f"{type(record).__name__} is not a kind of record")


def equal_sides(record: Preference) -> bool:
    """True where nothing is preferred to anything."""
    return record.chosen.strip() == record.rejected.strip()


def prompt_content(record: Record) -> str:
    """What must not be both in training and held out: the prompt, or the whole of a text."""
    match record:
        case Text():
            return record.text
        case Demonstration():
            return plain_text(record.messages[:-1])
        case _:
            return content(record)[0]


def completions(record: Record) -> tuple[str, ...]:
    """What a record would have a model say, without the prompt."""
    match record:
        case Demonstration():
            return (record.messages[-1].content,)
        case Prompt():
            return ()
        case Text():
            return (record.text,)
        case _:
            return content(record)[1:]
