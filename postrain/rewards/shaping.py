"""What is added to a reward to shape length and repetition, in the ecosystem's signature.

Lengths are words, since a reward sees text and no tokens; a method's own penalty for overlong completions counts
tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from postrain.data.repetition import distinct_ngram_share
from postrain.errors import ConfigError
from postrain.rewards.user_code import load_function


def repetition(completions: Sequence[str], n: int = 3) -> list[float]:
    """Minus the share of n-grams of words that were said before: 0 for a text that never repeats one, at worst near −1.

    The repetition penalty of Yeo et al. 2025, with the weight left to `reward.weights`.
    """
    _at_least_one("n", n)
    return [distinct_ngram_share(said.split(), n) - 1.0 for said in completions]


def overlong(completions: Sequence[str], max_words: int, cache: int) -> list[float]:
    """0 up to max_words − cache words, falling evenly to −1 at max_words and beyond (DAPO, Yu et al. 2025, eq. 13)."""
    _at_least_one("cache", cache)
    if max_words < cache:
        raise ConfigError(f"reward.arguments.max_words: expected at least cache ({cache}), got {max_words}")
    return [min(max((max_words - len(said.split())) / cache - 1.0, -1.0), 0.0) for said in completions]


def cosine(
    completions: Sequence[str],
    answer: Sequence[str | float | None],
    max_words: int,
    right: Sequence[float] = (2.0, 1.0),
    wrong: Sequence[float] = (-10.0, 0.0),
    exceeded: float = -10.0,
    scorer: str = "postrain.rewards.text.numeric",
) -> list[float | None]:
    """Right answers are worth more the shorter they are, wrong ones cost less the longer they are (Yeo et al. 2025).

    `right` and `wrong` are the rewards of no words and of max_words; between them the reward follows half a cosine.
    A completion of max_words or more gets `exceeded`. What is right is said by `scorer`, a function of completions and
    answer.
    """
    _at_least_one("max_words", max_words)
    scores = load_function(scorer, key="reward.arguments.scorer")(completions=completions, answer=answer)
    shares = [min(len(said.split()) / max_words, 1.0) for said in completions]
    return [
        None if score is None else exceeded if share == 1.0 else _between(right if score >= 1 else wrong, share)
        for score, share in zip(scores, shares, strict=True)
    ]


def _between(ends: Sequence[float], share: float) -> float:
    """From the first end at 0 to the second at 1, along half a cosine."""
    first, last = ends
    return last + 0.5 * (first - last) * (1 + math.cos(math.pi * share))


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"reward.arguments.{name}: expected an integer >= 1, got {value}")
