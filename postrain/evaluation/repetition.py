"""How much a text says again: distinct n-grams over a set of texts, and the loop a single text is caught in."""

from __future__ import annotations

from collections.abc import Sequence

from postrain.rewards.ngrams import ngrams


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Different word n-grams over all word n-grams of a set of texts (Li et al. 2016); 1 when there are none.

    Falls both when a text repeats itself and when all texts say the same: the sign of a collapsed policy.
    """
    runs = [run for text in texts for run in ngrams(text.split(), n)]
    return len(set(runs)) / len(runs) if runs else 1.0


def loop_share(text: str, longest: int = 12) -> float:
    """Share of a text's words that lie in its longest loop: up to `longest` words said twice or more in a row."""
    words = text.split()
    loops = (_loop(words, n) for n in range(1, min(longest, len(words) // 2) + 1))
    return max(loops, default=0) / max(len(words), 1)


def _loop(words: Sequence[str], n: int) -> int:
    """Words in the longest stretch that repeats with period `n`; 0 when nothing is said twice in a row."""
    best = run = 0
    for earlier, later in zip(words, words[n:], strict=False):
        run = run + 1 if earlier == later else 0
        best = max(best, run)
    return best + n if best >= n else 0
