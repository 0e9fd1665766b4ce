"""Runs of words: what the repetition reward and the repetition metrics both count."""

from __future__ import annotations

from collections.abc import Sequence


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Every run of `n` words, in order; none when there are fewer words."""
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def distinct_share(words: Sequence[str], n: int) -> float:
    """Different n-grams over all n-grams; 1 when there are too few words to repeat one."""
    runs = ngrams(words, n)
    return len(set(runs)) / len(runs) if runs else 1.0
