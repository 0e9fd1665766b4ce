"""The final answer of a completion: the part that says so itself, and the last number in it.

Knows the three marks models are taught, `<answer>…</answer>`, LaTeX's boxed and GSM8K's `#### 72`. Leaves out
mathematics: whether two answers are equal is a reward's question.
"""

from __future__ import annotations

import re
from decimal import Decimal

DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d+)?|\.\d+"
# Letters that touch a number make it a name (room 4b), and a minus after a digit is a dash (pages 10-12). Exponents
# have at most three digits: Decimal refuses some longer ones.
NUMBER = re.compile(rf"(?<!\w)(?<!\d\.)([-+−]?(?:{DIGITS})(?:[eE][-+]?\d{{1,3}})?)(?!\w|\.\d)")
# "####" heads sections of Markdown too: only a number alone after it is an answer.
MARKS = re.compile(
    r"<answer>(?P<tag>(?:(?!<answer>).)*?)</answer>"
    r"|\\boxed\{(?P<box>(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}"
    rf"|^####[ \t]*\$?(?P<hash>[-+−]?(?:{DIGITS}))\.?[ \t]*$",
    re.DOTALL | re.MULTILINE,
)


def marked_answer(text: str) -> str | None:
    """What the last mark in a text encloses; None where nothing is marked."""
    marks = list(MARKS.finditer(text))
    return marks[-1][marks[-1].lastgroup or 0].strip() if marks else None


def final_answer(text: str) -> str:
    """The marked answer, or else the whole text."""
    marked = marked_answer(text)
    return text.strip() if marked is None else marked


def last_number(text: str) -> Decimal | None:
    """The last number written in a text, thousands commas and exponents allowed; None when there is none."""
    found = NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "").replace("−", "-")) if found else None
