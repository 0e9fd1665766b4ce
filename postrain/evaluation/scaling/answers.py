"""The answer that a completion gives, where it stands, and how sure the model was of it.

Leaves out whether it is right: that is what a reward, the data's answers or its gold scores say.

L tokens of a completion.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from postrain.rewards.text import MARKS, NUMBER, last_number

Kind = Literal["number", "text"]
"""The last number of what is marked as the answer (or of the whole), or the marked (or whole) text itself."""


@dataclass(frozen=True)
class Answer:
    """What a completion comes to."""

    said: str
    """Equal for equal answers: 7, 7.0 and 7.00 are one, and so are Paris and paris."""
    start: int
    end: int
    """Where it stands, in characters."""


def extract_answer(text: str, kind: Kind) -> Answer | None:
    """The answer of a completion; None where there is none."""
    marks = list(MARKS.finditer(text))
    start, end = marks[-1].span(marks[-1].lastgroup or 0) if marks else (0, len(text))
    if kind == "text":
        said = text[start:end].strip()
        at = start + text[start:end].find(said)
        return Answer(said.casefold(), at, at + len(said)) if said else None
    numbers = list(NUMBER.finditer(text, start, end))
    value = last_number(text[start:end])
    if value is None or not numbers:
        return None
    return Answer(f"{value.normalize():f}", *numbers[-1].span(1))


def answer_probability(
    answer: Answer, ids_L: Sequence[int], logps_L: Sequence[float], text_of: Callable[..., str]
) -> float:
    """The probability of the tokens that write the answer, each given all before it.

    `text_of` gives the text of a row of tokens, in which the answer's place counts.
    """
    first = _tokens_for(answer.start + 1, ids_L, text_of) - 1
    last = _tokens_for(answer.end, ids_L, text_of)
    return math.exp(math.fsum(logps_L[first:last]))


def _tokens_for(characters: int, ids_L: Sequence[int], text_of: Callable[..., str]) -> int:
    """The fewest first tokens whose text has so many characters, by bisection: more tokens never have fewer."""
    low, high = 1, len(ids_L)
    while low < high:
        middle = (low + high) // 2
        if len(text_of(ids_L[:middle])) >= characters:
            high = middle
        else:
            low = middle + 1
    return low
