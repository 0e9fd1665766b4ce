"""The final answer of a completion, and rewards that read nothing but text and a column or two.

Answers are found by the three marks models are taught, `<answer>…</answer>`, LaTeX's boxed and GSM8K's `#### 72`, or as
the last number. The rewards are for `reward=function` and in the ecosystem's signature; each is pure, and None is for a
completion that cannot be judged since its record lacks the answer. Answers that take a library or a search to verify
are verified.py's, demands on the form of a text constraints.py's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal

from postrain.data.repetition import distinct_ngram_share
from postrain.errors import ConfigError

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


def exact(completions: Sequence[str], answer: Sequence[str | float | None]) -> list[float | None]:
    """1 where the final answer (marked, or the whole completion) is the row's, case and outer space aside."""
    return [
        None if right is None else float(final_answer(said).casefold() == final_answer(str(right)).casefold())
        for said, right in zip(completions, answer, strict=True)
    ]


def numeric(completions: Sequence[str], answer: Sequence[str | float | None]) -> list[float | None]:
    """1 where the last number of the final answer equals that of the row's (7, 7.0 and 7.00 are one).

    A row whose answer holds no number cannot be judged.
    """
    return [
        None if (right := _number(asked)) is None else float(_number(said) == right)
        for said, asked in zip(completions, answer, strict=True)
    ]


def _number(text: str | float | None) -> Decimal | None:
    return None if text is None else last_number(final_answer(str(text)))


def length(completions: Sequence[str], words: int) -> list[float]:
    """1 at `words` words, falling evenly to 0 at none and at twice as many."""
    if words < 1:
        raise ConfigError(f"reward.arguments.words: expected an integer >= 1, got {words}")
    return [max(0.0, 1 - abs(len(said.split()) - words) / words) for said in completions]


def matches(completions: Sequence[str], pattern: str) -> list[float]:
    """1 where the whole completion, outer space aside, has the form of a regular expression."""
    form = _compiled(pattern)
    return [float(form.fullmatch(said.strip()) is not None) for said in completions]


def finds(completions: Sequence[str], pattern: str) -> list[float]:
    """1 where a regular expression is found anywhere in the completion."""
    form = _compiled(pattern)
    return [float(form.search(said) is not None) for said in completions]


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ConfigError(f"reward.arguments.pattern: {pattern!r} is not a regular expression ({error})") from None


def tagged(completions: Sequence[str], tags: Sequence[str], opened: bool = False) -> list[float]:
    """1 where the completion is these tags in this order, each once and around some text, and nothing outside them.

    `opened` is for chat templates whose prompt has written the first opening tag already.
    """
    if isinstance(tags, str) or not tags:
        raise ConfigError(f"reward.arguments.tags: expected a list of names such as [think, answer], got {tags!r}")
    name = "|".join(re.escape(tag) for tag in tags)
    # No tag's text may hold another of the tags: `.*` would let `<answer>1</answer><answer>2</answer>` pass for one.
    inside = rf"(?!</?(?:{name})>)"
    text = rf"\s*{inside}\S(?:{inside}.)*"
    form = re.compile(r"\s*".join(f"<{re.escape(tag)}>{text}</{re.escape(tag)}>" for tag in tags), re.DOTALL)
    start = f"<{tags[0]}>" if opened else ""
    return [float(form.fullmatch(start + said.strip()) is not None) for said in completions]


def non_repetition(completions: Sequence[str], n: int = 2) -> list[float]:
    """Share of n-grams of words that are said for the first time: 1 for a text that never repeats one."""
    return [distinct_ngram_share(said.split(), n) for said in completions]
