"""Conversations as messages, and transcripts of Human and Assistant turns in one text (the format of HH-RLHF)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

FIRST_TURN = "\n\nHuman:"
LAST_TURN = "\n\nAssistant:"
TURN = re.compile(rf"{FIRST_TURN}|{LAST_TURN}")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    """system, user or assistant."""
    content: str
    in_loss: bool = True
    """False for an answer of weight 0, which is context only."""
    prefill: bool = False
    """True for an assistant message at the end of a prompt, which the model continues."""
    written: str | None = field(default=None, compare=False)
    """The turn as it is in a transcript, with its speaker; for models without a chat template."""


Messages = tuple[Message, ...]


def user(text: str) -> Messages:
    """A prompt of one user message."""
    return (Message("user", text),)


def with_prefill(prompt: Messages) -> Messages:
    """The prompt with its last message marked as a prefill if it is the assistant's."""
    *before, last = prompt
    return (*before, replace(last, prefill=last.role == "assistant"))


def plain_text(messages: Messages) -> str:
    """A prompt without a chat template: a message or a transcript unchanged, several messages joined by blank lines."""
    written = [message.written for message in messages if message.written is not None]
    if written and len(written) == len(messages):
        return "".join(written)
    return "\n\n".join(message.content for message in messages)


def is_transcript(text: str) -> bool:
    """True for a text that starts with a Human turn."""
    return text.startswith(FIRST_TURN)


def transcript(text: str) -> Messages:
    """The turns of a transcript, each with its original text in `written`.

    An empty assistant turn at the end is not a turn: it stays in the text of the turn before. An assistant turn with
    text at the end is a prefill.
    """
    starts = [match.start() for match in TURN.finditer(text)]
    turns = [_turn(text[start:end]) for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]
    if len(turns) > 1 and turns[-1] == Message("assistant", ""):
        *turns, opening = turns
        turns[-1] = replace(turns[-1], written=f"{turns[-1].written}{opening.written}")
    return with_prefill(tuple(turns))


def _turn(text: str) -> Message:
    speaker, _, content = text.strip("\n").partition(":")
    return Message("user" if speaker == "Human" else "assistant", content.strip(), written=text)
