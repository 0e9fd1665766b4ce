"""The answer that a text gives to a question: its number, or the option it names, so that two texts can be compared.

A marked answer (rewards/text.py) goes before all others. Leaves out what the right answer would be, and does not
notice a text that goes on to contradict itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal

from postrain.rewards.text import NUMBER, final_answer, last_number

UNITS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
NUMBER_WORDS = {word: value for value, word in enumerate(UNITS)} | {
    word: 10 * value for value, word in enumerate(TENS, start=2)
}
SPELLED = re.compile(
    rf"\b({'|'.join(TENS)})(?:[- ]({'|'.join(UNITS[1:10])}))?\b|\b({'|'.join(UNITS)})\b", re.IGNORECASE
)
# cm^2 holds no number; 180km does.
EXPONENT = re.compile(r"(?<=[a-zA-Z])\^\{?\d\}?")
UNIT = re.compile(r"(?<=\d)(?=[a-zA-Z]{1,5}\b)")
# Sums and lists that are not the answer but led to it: the 2 + 3 * 4 of "2 + 3 * 4 = 14", and [4, 5, 6].
WORKING = re.compile(r"\d[\d.,]*(?:\s*[-+−*×/÷]\s*\d[\d.,]*)+|\[[^\]]*\]")
CONCLUSION = re.compile(r"\b(?:answer is|so|therefore|thus|hence)\b", re.IGNORECASE)


def number_in(text: str) -> Decimal | None:
    """The last number of a text, be it in words where no digits are written; sums and lists only if there is no
    other."""
    said = _cleaned(text)
    found = last_number(WORKING.sub(" ", said))
    found = last_number(said) if found is None else found
    spelled = _spelled(said) if found is None else []
    return Decimal(spelled[-1]) if spelled else found


def first_number_in(text: str) -> Decimal | None:
    """The first number of a text, be it in words where no digits are written; "one" counts only if it is alone."""
    said = _cleaned(text)
    found = NUMBER.search(said)
    if found:
        return last_number(found[1])
    spelled = _spelled(said)
    return Decimal(next((value for value in spelled if value != 1), spelled[0])) if spelled else None


def chosen(text: str, options: Sequence[Sequence[str]]) -> str | None:
    """The first name of the option that is named first, in the conclusion where there is one."""
    said = final_answer(text)
    for part in (CONCLUSION.split(said)[-1], said):
        places = [(place, names[0]) for names in options if (place := place_of(part, names)) is not None]
        if places:
            return min(places)[1]
    return None


def normalised(text: str) -> str:
    """A text without case, without marks at its ends, and with single spaces."""
    return " ".join(text.casefold().split()).strip(" .,!?:;*`\"'“”‘’")


def place_of(text: str, phrases: Sequence[str]) -> int | None:
    """Where the first of some phrases begins, as whole words, whatever their case."""
    names = "|".join(map(re.escape, phrases))
    found = re.search(rf"(?<!\w)(?:{names})(?!\w)", text, re.IGNORECASE)
    return found.start() if found else None


def _cleaned(text: str) -> str:
    return UNIT.sub(" ", EXPONENT.sub("", final_answer(text)))


def _spelled(text: str) -> list[int]:
    """The numbers that are written in words, in order."""
    groups = (match.groups() for match in SPELLED.finditer(text))
    return [sum(NUMBER_WORDS[word.lower()] for word in words if word) for words in groups]
