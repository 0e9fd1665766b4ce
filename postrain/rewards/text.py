"""Rewards that read nothing but text and a column or two, in the ecosystem's signature, for `reward=function`.

Each is pure; None is for a completion that cannot be judged since its record lacks the answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal

from postrain.rewards.ngrams import distinct_share
from postrain.types import ConfigError

NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?!\w)")


def exact(completions: Sequence[str], answer: Sequence[str | None]) -> list[float | None]:
    """1 where the whole completion is the answer, case and outer space aside."""
    return [
        None if right is None else float(said.strip().casefold() == str(right).strip().casefold())
        for said, right in zip(completions, answer, strict=True)
    ]


def numeric(completions: Sequence[str], answer: Sequence[str | float | None]) -> list[float | None]:
    """1 where the last number of the completion equals the last number of the answer (7, 7.0 and 7.00 are one)."""
    return [
        None if right is None else float(last_number(said) is not None and last_number(said) == last_number(str(right)))
        for said, right in zip(completions, answer, strict=True)
    ]


def last_number(text: str) -> Decimal | None:
    """The last number written in a text, thousands commas allowed; None when there is none."""
    found = NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "").rstrip(".")) if found else None


def length(completions: Sequence[str], words: int) -> list[float]:
    """1 at `words` words, falling evenly to 0 at none and at twice as many."""
    if words < 1:
        raise ConfigError(f"reward.arguments.words: expected an integer >= 1, got {words}")
    return [max(0.0, 1 - abs(len(said.split()) - words) / words) for said in completions]


def matches(completions: Sequence[str], pattern: str) -> list[float]:
    """1 where the whole completion, outer space aside, has the form of a regular expression."""
    try:
        form = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ConfigError(f"reward.arguments.pattern: {pattern!r} is not a regular expression ({error})") from None
    return [float(form.fullmatch(said.strip()) is not None) for said in completions]


def non_repetition(completions: Sequence[str], n: int = 2) -> list[float]:
    """Share of n-grams of words that are said for the first time: 1 for a text that never repeats one."""
    return [distinct_share(said.split(), n) for said in completions]
