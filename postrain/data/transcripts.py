"""Transcripts of a Human and an Assistant in one text, as HH writes them: where the turns are and who speaks."""

from __future__ import annotations

import re

from postrain.data.records import Message, Messages

FIRST_TURN = "\n\nHuman:"
LAST_TURN = "\n\nAssistant:"
TURN = re.compile(rf"{FIRST_TURN}|{LAST_TURN}")


def is_transcript(text: str) -> bool:
    """True for a text that opens with a Human's turn."""
    return text.startswith(FIRST_TURN)


def transcript(text: str) -> Messages:
    """The turns of a transcript; one that ends by opening the assistant's turn has none there."""
    starts = [match.start() for match in TURN.finditer(text)]
    turns = [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]
    found = [_turn(turn) for turn in turns]
    return tuple(found[:-1] if found[-1] == Message("assistant", "") else found)


def _turn(text: str) -> Message:
    speaker, _, said = text.strip("\n").partition(":")
    return Message("user" if speaker == "Human" else "assistant", said.strip())
