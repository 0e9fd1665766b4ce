"""Extracts the answer of a completion, its position, and its probability. Grading is in grader.py.

L tokens of a completion.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from postrain.rewards.text import MARKS, NUMBER, last_number

Kind = Literal["number", "text"]
"""number: the last number of the marked answer, else of the text. text: the marked answer, else the whole text."""


@dataclass(frozen=True)
class Answer:
    """The answer of a completion."""

    value: str
    """Normalised: 7, 7.0 and 7.00 are equal, and so are Paris and paris."""
    start: int
    end: int
    """Character span in the text."""


def extract_answer(text: str, kind: Kind) -> Answer | None:
    """The answer of a completion; None if there is none."""
    marks = list(MARKS.finditer(text))
    start, end = marks[-1].span(marks[-1].lastgroup or 0) if marks else (0, len(text))
    if kind == "text":
        value = text[start:end].strip()
        at = start + text[start:end].find(value)
        return Answer(value.casefold(), at, at + len(value)) if value else None
    numbers = list(NUMBER.finditer(text, start, end))
    value = last_number(text[start:end])
    if value is None or not numbers:
        return None
    return Answer(f"{value.normalize():f}", *numbers[-1].span(1))


def answer_probability(
    answer: Answer, ids_L: Sequence[int], logps_L: Sequence[float], text_of: Callable[..., str]
) -> float:
    """The probability of the answer's tokens, given all tokens before them.

    `text_of` decodes token ids to the text that the answer's span refers to.
    """
    first = _tokens_for(answer.start + 1, ids_L, text_of) - 1
    last = _tokens_for(answer.end, ids_L, text_of)
    return math.exp(math.fsum(logps_L[first:last]))


def _tokens_for(characters: int, ids_L: Sequence[int], text_of: Callable[..., str]) -> int:
    """The length of the shortest token prefix whose text has at least this many characters, by bisection."""
    low, high = 1, len(ids_L)
    while low < high:
        middle = (low + high) // 2
        if len(text_of(ids_L[:middle])) >= characters:
            high = middle
        else:
            low = middle + 1
    return low
