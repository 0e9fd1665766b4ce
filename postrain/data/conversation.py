"""Conversations: messages, and transcripts of a Human and an Assistant in one text, as HH writes them."""

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
    """False for an answer that is part of the conversation and not imitated (weight 0)."""
    prefill: bool = False
    """True for the assistant's last message in a prompt, which is to be continued."""
    written: str | None = field(default=None, compare=False)
    """The turn with its speaker as a transcript writes it, for models without a chat template."""


Messages = tuple[Message, ...]


def user(text: str) -> Messages:
    """A prompt of one user message."""
    return (Message("user", text),)


def with_prefill(prompt: Messages) -> Messages:
    """A prompt; if its last message is the assistant's, that one is to be continued."""
    *before, last = prompt
    return (*before, replace(last, prefill=last.role == "assistant"))


def plain_text(messages: Messages) -> str:
    """A prompt as a person wrote it: one message or a transcript as it stands, several messages under each other."""
    written = [message.written for message in messages if message.written is not None]
    if written and len(written) == len(messages):
        return "".join(written)
    return "\n\n".join(message.content for message in messages)


def is_transcript(text: str) -> bool:
    """True for a text that opens with a Human's turn."""
    return text.startswith(FIRST_TURN)


def transcript(text: str) -> Messages:
    """The turns of a prompt, each with its text as it stands; one that only opens the assistant's turn has none there.

    An assistant's turn that has begun is to be continued.
    """
    starts = [match.start() for match in TURN.finditer(text)]
    turns = [_turn(text[start:end]) for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]
    if len(turns) > 1 and turns[-1] == Message("assistant", ""):
        *turns, opening = turns
        turns[-1] = replace(turns[-1], written=f"{turns[-1].written}{opening.written}")
    return with_prefill(tuple(turns))


def _turn(text: str) -> Message:
    speaker, _, said = text.strip("\n").partition(":")
    return Message("user" if speaker == "Human" else "assistant", said.strip(), written=text)
