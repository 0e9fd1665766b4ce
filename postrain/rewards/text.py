"""Extraction of the final answer of a completion, and verifiable rewards that need only text and a column or two.

Answers are marked by `<answer>…</answer>`, LaTeX's boxed or GSM8K's `#### 72`; else the last number counts. The rewards
are pure functions for `reward=function`, in TRL's signature. None means unscorable: the row has no answer. Answers that
need a library or a computation to verify are in verified.py, constraints on the form of a text in constraints.py.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from decimal import Decimal

from postrain.data.repetition import distinct_ngram_share
from postrain.errors import ConfigError

DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d+)?|\.\d+"
# A number next to a letter is a name (room 4b); a minus after a digit is a dash (pages 10-12). Exponents have at most
# three digits: Decimal rejects some longer ones.
NUMBER = re.compile(rf"(?<!\w)(?<!\d\.)([-+−]?(?:{DIGITS})(?:[eE][-+]?\d{{1,3}})?)(?!\w|\.\d)")
# "####" is also a Markdown heading: only a number alone after it is an answer.
MARKS = re.compile(
    r"<answer>(?P<tag>(?:(?!<answer>).)*?)</answer>"
    r"|\\boxed\{(?P<box>(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}"
    rf"|^####[ \t]*\$?(?P<hash>[-+−]?(?:{DIGITS}))\.?[ \t]*$",
    re.DOTALL | re.MULTILINE,
)


def marked_answer(text: str) -> str | None:
    """The content of the last answer mark in a text; None if there is none."""
    marks = list(MARKS.finditer(text))
    return marks[-1][marks[-1].lastgroup or 0].strip() if marks else None


def final_answer(text: str) -> str:
    """The marked answer, or else the whole text."""
    marked = marked_answer(text)
    return text.strip() if marked is None else marked


def last_number(text: str) -> Decimal | None:
    """The last number in a text, with thousands commas and exponents; None if there is none."""
    found = NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "").replace("−", "-")) if found else None


def exact(completions: Sequence[str], answer: Sequence[str | float | None]) -> list[float | None]:
    """1 if the final answer (marked, or the whole completion) equals the row's, ignoring case and outer white space."""
    return [
        None if expected is None else float(final_answer(text).casefold() == final_answer(str(expected)).casefold())
        for text, expected in zip(completions, answer, strict=True)
    ]


def numeric(completions: Sequence[str], answer: Sequence[str | float | None]) -> list[float | None]:
    """1 if the last number of the final answer equals that of the row's answer (7 = 7.0 = 7.00).

    A row whose answer has no number is unscorable.
    """
    return [
        None if (number := _number(expected)) is None else float(_number(text) == number)
        for text, expected in zip(completions, answer, strict=True)
    ]


def answer(completions: Sequence[str], answer: Sequence[str | float | None]) -> list[float | None]:
    """1 if the final answer equals the row's: by value (`numeric`) if that has a number, else as a text.

    Texts are compared as by `exact`, without the punctuation around them: "Positive." is positive.
    """
    return [
        numeric([text], [expected])[0]
        if expected is None or _number(expected) is not None
        else float(_bare(final_answer(text)) == _bare(final_answer(str(expected))))
        for text, expected in zip(completions, answer, strict=True)
    ]


def _bare(text: str) -> str:
    return text.casefold().strip(string.whitespace + string.punctuation + "“”‘’«»")


def _number(text: str | float | None) -> Decimal | None:
    return None if text is None else last_number(final_answer(str(text)))


def length(completions: Sequence[str], words: int) -> list[float]:
    """1 at `words` words, falling linearly to 0 at 0 words and at twice as many."""
    if words < 1:
        raise ConfigError(f"reward.arguments.words: expected an integer >= 1, got {words}")
    return [max(0.0, 1 - abs(len(text.split()) - words) / words) for text in completions]


def matches(completions: Sequence[str], pattern: str) -> list[float]:
    """1 if the whole completion, without outer white space, matches a regular expression."""
    form = _compiled(pattern)
    return [float(form.fullmatch(text.strip()) is not None) for text in completions]


def finds(completions: Sequence[str], pattern: str) -> list[float]:
    """1 if a regular expression matches anywhere in the completion."""
    form = _compiled(pattern)
    return [float(form.search(text) is not None) for text in completions]


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ConfigError(f"reward.arguments.pattern: {pattern!r} is not a regular expression ({error})") from None


def tagged(completions: Sequence[str], tags: Sequence[str], opened: bool = False) -> list[float]:
    """1 if the completion consists of these tags in this order, each once and non-empty, with nothing outside them.

    `opened`: the chat template already writes the first opening tag.
    """
    if isinstance(tags, str) or not tags:
        raise ConfigError(f"reward.arguments.tags: expected a list of names such as [think, answer], got {tags!r}")
    name = "|".join(re.escape(tag) for tag in tags)
    # No tag may contain another: `.*` would accept `<answer>1</answer><answer>2</answer>` as one.
    inside = rf"(?!</?(?:{name})>)"
    text = rf"\s*{inside}\S(?:{inside}.)*"
    form = re.compile(r"\s*".join(f"<{re.escape(tag)}>{text}</{re.escape(tag)}>" for tag in tags), re.DOTALL)
    start = f"<{tags[0]}>" if opened else ""
    return [float(form.fullmatch(start + text.strip()) is not None) for text in completions]


def non_repetition(completions: Sequence[str], n: int = 2) -> list[float]:
    """Share of word n-grams that do not repeat an earlier one: 1 without repetition."""
    return [distinct_ngram_share(text.split(), n) for text in completions]
