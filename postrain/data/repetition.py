"""How much texts say again: n-grams within a text and over a set of texts, loops, and collapse to few texts.

Standard library only: data filters, rewards, evaluation and reports count the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

DISTINCT, ONE_WORD = "completion/distinct", "completion/one_word"
FEW, MOST = 0.25, 0.5
"""A share of different completions up to which, and a share of one-word ones from which, a policy has collapsed."""


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Every run of `n` words, in order; none when there are fewer words."""
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def distinct_ngram_share(words: Sequence[str], n: int) -> float:
    """Different n-grams over all n-grams; 1 when there are too few words to repeat one."""
    runs = ngrams(words, n)
    return len(set(runs)) / len(runs) if runs else 1.0


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


def distinct_text_share(texts: Sequence[str]) -> float:
    """Different texts over texts, blanks and case aside; 1 where there are none."""
    return len({" ".join(text.lower().split()) for text in texts}) / len(texts) if texts else 1.0


def one_word_share(texts: Sequence[str]) -> float:
    """Share of texts that are empty, one word, or one word again and again."""
    return sum(len(set(text.lower().split())) <= 1 for text in texts) / len(texts) if texts else 0.0


def collapsed(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """How the completions of an evaluation have collapsed since the one before training; empty where they have not.

    Both hold held-out metrics by name. Completions that were short or alike from the beginning, as labels and numbers
    are, have not collapsed: the share has to be twice as bad as before training.
    """
    distinct, one_word = f"eval/{DISTINCT}", f"eval/{ONE_WORD}"
    found = []
    if distinct in after and after[distinct] <= min(FEW, before.get(distinct, 1.0) / 2):
        found.append(f"{after[distinct]:.0%} of the completions are different{_earlier(before, distinct)}")
    if one_word in after and after[one_word] >= max(MOST, 2 * before.get(one_word, 0.0)):
        found.append(f"{after[one_word]:.0%} have at most one word{_earlier(before, one_word)}")
    return ", ".join(found)


def _earlier(before: Mapping[str, float], name: str) -> str:
    return f" ({before[name]:.0%} before training)" if name in before else ""
