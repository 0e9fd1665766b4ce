"""Reward shaping for length and repetition, in TRL's signature of reward functions.

Lengths are in words, except for `length_budget`, which counts tokens, as the overlong penalty of a method does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from postrain.data.repetition import distinct_ngram_share
from postrain.errors import ConfigError
from postrain.rewards.text import Expected
from postrain.rewards.user_code import load_function


def repetition(completions: Sequence[str], n: int = 3) -> list[float]:
    """Minus the share of word n-grams that repeat an earlier one: 0 without repetition, close to −1 at worst.

    The repetition penalty of Yeo et al. 2025; its weight is set by `reward.weights`.
    """
    _at_least_one("n", n)
    return [distinct_ngram_share(text.split(), n) - 1.0 for text in completions]


def overlong(completions: Sequence[str], max_words: int, cache: int) -> list[float]:
    """0 up to max_words − cache words, linearly to −1 at max_words and beyond (DAPO, Yu et al. 2025, eq. 13)."""
    _at_least_one("cache", cache)
    if max_words < cache:
        raise ConfigError(f"reward.arguments.max_words: expected at least cache ({cache}), got {max_words}")
    return [min(max((max_words - len(text.split())) / cache - 1.0, -1.0), 0.0) for text in completions]


def cosine(
    completions: Sequence[str],
    answer: Sequence[Expected],
    max_words: int,
    right: Sequence[float] = (2.0, 1.0),
    wrong: Sequence[float] = (-10.0, 0.0),
    exceeded: float = -10.0,
    scorer: str = "postrain.rewards.text.numeric",
) -> list[float | None]:
    """Cosine length reward: correct answers score higher if shorter, wrong ones if longer (Yeo et al. 2025).

    `right` and `wrong` are the rewards at 0 and at max_words words; between them the reward follows half a cosine. A
    completion of max_words or more gets `exceeded`. `scorer`, a function of completions and answer, decides what is
    correct (a score of at least 1).
    """
    _at_least_one("max_words", max_words)
    scores = load_function(scorer, key="reward.arguments.scorer")(completions=completions, answer=answer)
    shares = [min(len(text.split()) / max_words, 1.0) for text in completions]
    return [
        None if score is None else exceeded if share == 1.0 else _between(right if score >= 1 else wrong, share)
        for score, share in zip(scores, shares, strict=True)
    ]


def length_budget(
    completions: Sequence[str],
    completion_ids: Sequence[Sequence[int]],
    answer: Sequence[Expected],
    budget: Sequence[int | None] | None = None,
    tokens: int = 256,
    form: Literal["exact", "max"] = "max",
    alpha: float = 3e-4,
    delta: float = 0.5,
    scorer: str = "postrain.rewards.text.answer",
) -> list[float | None]:
    """Correctness for a budget of tokens: the row's column `budget`, else `tokens` (Aggarwal & Welleck 2025, L1, arXiv
    2503.04697, eq. 1 and 2).

    exact: correct − alpha · |budget − length|. max: correct · clip(alpha · (budget − length) + delta, 0, 1), so a right
    answer within the budget scores at least delta. `scorer` decides what is correct, as in `cosine`.
    """
    _at_least_one("tokens", tokens)
    if form not in ("exact", "max"):
        raise ConfigError(f"reward.arguments.form: expected exact or max, got {form!r}")
    scores = load_function(scorer, key="reward.arguments.scorer")(completions=completions, answer=answer)
    left = [
        (tokens if own is None else own) - len(ids)
        for own, ids in zip(budget or [None] * len(completions), completion_ids, strict=True)
    ]
    return [
        None
        if score is None
        else score - alpha * abs(tokens_left)
        if form == "exact"
        else score * min(max(alpha * tokens_left + delta, 0.0), 1.0)
        for score, tokens_left in zip(scores, left, strict=True)
    ]


def _between(ends: Sequence[float], share: float) -> float:
    """Half a cosine from the first value at share 0 to the second at share 1."""
    first, last = ends
    return last + 0.5 * (first - last) * (1 + math.cos(math.pi * share))


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"reward.arguments.{name}: expected an integer >= 1, got {value}")
