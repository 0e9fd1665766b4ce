"""Transcripts of a Human and an Assistant in one text, as HH writes them: where the turns are and who speaks."""

from __future__ import annotations

import re
from dataclasses import replace

from postrain.data.records import Message, Messages, opened

FIRST_TURN = "\n\nHuman:"
LAST_TURN = "\n\nAssistant:"
TURN = re.compile(rf"{FIRST_TURN}|{LAST_TURN}")


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
    return opened(tuple(turns))


def _turn(text: str) -> Message:
    speaker, _, said = text.strip("\n").partition(":")
    return Message("user" if speaker == "Human" else "assistant", said.strip(), written=text)
