"""Selection rules of test-time scaling: best of n, majority vote, beams. Pure functions on the standard library.

Best of n has an unbiased closed form over all subsets of the samples, like pass@k (Chen et al. 2021, eq. 1). A majority
vote has none; it is averaged over disjoint groups of samples.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass


def best_of_n_kl(n: int) -> float:
    """KL of the best of n samples to the sampler: log n − (n − 1)/n, a close upper bound (Stiennon et al. 2020)."""
    return math.log(n) - (n - 1) / n


def powers_of_two(most: int) -> tuple[int, ...]:
    """1, 2, 4, ... up to `most`, which is at least 1."""
    return tuple(2**power for power in range(most.bit_length()))


def expected_best_of_n(scores: Sequence[float | None], grades: Sequence[float], n: int) -> float:
    """The expected correctness of the best-scored of n samples, over all subsets of size n.

    Of G samples, s score better than a value that m have: the best of n has it with probability
    (C(G−s, n) − C(G−s−m, n)) / C(G, n), with ties broken uniformly. Samples without a score rank
    last. With binary correctness as the score this is pass@n = 1 − C(G−c, n)/C(G, n), c of G correct.
    """
    tied: dict[float, list[float]] = {}
    for score, grade in zip(scores, grades, strict=True):
        tied.setdefault(-math.inf if score is None else score, []).append(grade)
    left, expected = len(grades), 0.0
    for score in sorted(tied, reverse=True):
        alike = tied[score]
        taken = math.comb(left, n) - math.comb(left - len(alike), n)
        expected += taken * math.fsum(alike) / len(alike)
        left -= len(alike)
    return expected / math.comb(len(grades), n)


@dataclass(frozen=True)
class Vote:
    """The result of a majority vote."""

    index: int
    """Index of the first sample with the winning answer."""
    share: float
    """Share of all samples, including those without an answer; 0 if none has one."""


def majority_vote(answers: Sequence[Hashable | None], weights: Sequence[float]) -> Vote:
    """The most frequent answer (Wang et al. 2022, self-consistency); ties are broken by the larger sum of
    weights, then by the first sample. None has no vote."""
    votes: dict[Hashable, list[int]] = {}
    for index, answer in enumerate(answers):
        if answer is not None:
            votes.setdefault(answer, []).append(index)
    if not votes:
        return Vote(0, 0.0)
    won = max(votes.values(), key=lambda indices: (len(indices), math.fsum(weights[index] for index in indices)))
    return Vote(won[0], len(won) / len(answers))


def top_states(scores: Sequence[float], states: Sequence[Hashable], width: int) -> list[int]:
    """The indices of the `width` best-scored distinct states, best first; ties by index."""
    first: dict[Hashable, int] = {}
    for index, state in enumerate(states):
        first.setdefault(state, index)
    return sorted(first.values(), key=lambda index: -scores[index])[:width]


def final_state(scores: Sequence[float], ended: Sequence[bool]) -> int:
    """The index of a search's result: the best-scored finished state, else the best-scored state."""
    return max(range(len(scores)), key=lambda index: (ended[index], scores[index]))
