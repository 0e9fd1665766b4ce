"""Novelty and diversity of a set of texts, such as prompts that a model made: ROUGE-L against others, distinct-n.

Self-Instruct (Wang et al. 2022, arXiv 2212.10560, section 2.2) keeps an instruction if its ROUGE-L with every kept one
is below 0.7. Standard library only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations
from statistics import fmean, median

from postrain.data.decontaminate import words
from postrain.data.repetition import distinct_n

MOST_PAIRS = 20_000
"""Pairs of the mean overlap; of more texts, the first ones."""


def rouge_l(first: Sequence[str], second: Sequence[str]) -> float:
    """ROUGE-L F1 of two word lists: 2 · LCS / (sum of lengths), with the longest common subsequence; 0 if one is
    empty."""
    if not first or not second:
        return 0.0
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for place, other in enumerate(second, start=1):
            above = row[place]
            row[place] = diagonal + 1 if word == other else max(above, row[place - 1])
            diagonal = above
    return 2 * row[-1] / (len(first) + len(second))


class Novelty:
    """The texts so far; a text is novel if its ROUGE-L with each is below `limit`."""

    def __init__(self, limit: float, texts: Iterable[str] = ()) -> None:
        self.limit = limit
        self.known: list[tuple[list[str], Counter[str]]] = []
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """Adds a text."""
        found = words(text)
        self.known.append((found, Counter(found)))

    def is_novel(self, text: str) -> bool:
        """Whether no known text is alike."""
        own = words(text)
        counts = Counter(own)
        for other, known in self.known:
            least = self.limit * (len(own) + len(other)) / 2
            # The common subsequence is at most as long as the words in common.
            if (counts & known).total() >= least and rouge_l(own, other) >= self.limit:
                return False
        return True


def diversity(texts: Sequence[str]) -> dict[str, float]:
    """distinct-1 to distinct-3, the mean ROUGE-L of pairs of texts, and the median, least and largest number of
    words; of two texts at least."""
    found = [words(text) for text in texts]
    lengths = [len(one) for one in found]
    size = next((n for n in range(len(found), 1, -1) if n * (n - 1) // 2 <= MOST_PAIRS), 2)
    overlap = fmean(rouge_l(one, other) for one, other in combinations(found[:size], 2))
    return {
        **{f"distinct_{n}": distinct_n([" ".join(one) for one in found], n) for n in (1, 2, 3)},
        "mean_rouge_l": overlap,
        "median_words": median(lengths),
        "min_words": min(lengths),
        "max_words": max(lengths),
    }
