"""Measures of repetition: n-grams within a text and over a set of texts, loops, and collapse to few completions.

Data filters, rewards, evaluation and reports share these definitions. Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

DISTINCT, ONE_WORD = "completion/distinct", "completion/one_word"
SUCCESS = "eval/environment/success"
MAX_COLLAPSED_DISTINCT, MIN_COLLAPSED_ONE_WORD = 0.25, 0.5
"""A policy has collapsed at or below this share of distinct completions, or at or above this share of one-word ones."""


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All sequences of `n` adjacent words, in order; empty for fewer than `n` words."""
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def distinct_ngram_share(words: Sequence[str], n: int) -> float:
    """Number of distinct n-grams / number of n-grams of a text; 1 for fewer than `n` words."""
    runs = ngrams(words, n)
    return len(set(runs)) / len(runs) if runs else 1.0


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Number of distinct n-grams / number of n-grams over a set of texts (Li et al. 2016); 1 without n-grams.

    Low if texts repeat themselves and if texts are alike, both signs of a collapsed policy.
    """
    runs = [run for text in texts for run in ngrams(text.split(), n)]
    return len(set(runs)) / len(runs) if runs else 1.0


def loop_share(text: str, longest: int = 12) -> float:
    """Share of the words in the longest loop: up to `longest` words repeated directly after each other."""
    words = text.split()
    loops = (_loop(words, n) for n in range(1, min(longest, len(words) // 2) + 1))
    return max(loops, default=0) / max(len(words), 1)


def _loop(words: Sequence[str], n: int) -> int:
    """Words in the longest sequence with period `n`; 0 without a repetition."""
    best = run = 0
    for earlier, later in zip(words, words[n:], strict=False):
        run = run + 1 if earlier == later else 0
        best = max(best, run)
    return best + n if best >= n else 0


def distinct_text_share(texts: Sequence[str]) -> float:
    """Number of distinct texts / number of texts, ignoring whitespace and case; 1 without texts."""
    return len({" ".join(text.lower().split()) for text in texts}) / len(texts) if texts else 1.0


def one_word_share(texts: Sequence[str]) -> float:
    """Share of texts that are empty or repeat one word; 0 without texts."""
    return sum(len(set(text.lower().split())) <= 1 for text in texts) / len(texts) if texts else 0.0


def collapsed(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """Describes how completions have collapsed since the evaluation before training; empty if they have not.

    `before` and `after` are held-out metrics by name. Short or alike completions, such as labels and numbers, are not a
    collapse if they were so before training: the share must also have halved (distinct) or doubled (one word). Nor are
    alike moves in an environment that the policy solves more often than before.
    """
    if after.get(SUCCESS, 0.0) > before.get(SUCCESS, 1.0):
        return ""
    distinct, one_word = f"eval/{DISTINCT}", f"eval/{ONE_WORD}"
    found = []
    if distinct in after and after[distinct] <= min(MAX_COLLAPSED_DISTINCT, before.get(distinct, 1.0) / 2):
        found.append(f"{after[distinct]:.0%} of the completions are different{_earlier(before, distinct)}")
    if one_word in after and after[one_word] >= max(MIN_COLLAPSED_ONE_WORD, 2 * before.get(one_word, 0.0)):
        found.append(f"{after[one_word]:.0%} have at most one word{_earlier(before, one_word)}")
    return ", ".join(found)


def _earlier(before: Mapping[str, float], name: str) -> str:
    return f" ({before[name]:.0%} before training)" if name in before else ""
