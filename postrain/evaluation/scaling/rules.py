"""Which of several answers a way of using a model takes, as pure functions. Standard library only: reports import it.

Every estimate uses all samples of a prompt and is unbiased for a smaller number of them: the choice by score has a
closed form over all subsets, as pass@k has (Chen et al. 2021, eq. 1); a vote has none, so it is taken in groups of
samples that lie next to each other.
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


def expected_best_of_n(scores: Sequence[float | None], worths: Sequence[float], n: int) -> float:
    """The worth of the best-scored of n samples, expected over all subsets of size n of those there are.

    Of G samples, s score better than a value that m have: the best of n has it with probability
    (C(G−s, n) − C(G−s−m, n)) / C(G, n), and is any of the m alike. A sample without a score is taken only where no
    other is there. With worths that are 1 or 0 as scores this is pass@n = 1 − C(G−c, n)/C(G, n), c of G right.
    """
    tied: dict[float, list[float]] = {}
    for score, worth in zip(scores, worths, strict=True):
        tied.setdefault(-math.inf if score is None else score, []).append(worth)
    left, expected = len(worths), 0.0
    for score in sorted(tied, reverse=True):
        alike = tied[score]
        taken = math.comb(left, n) - math.comb(left - len(alike), n)
        expected += taken * math.fsum(alike) / len(alike)
        left -= len(alike)
    return expected / math.comb(len(worths), n)


@dataclass(frozen=True)
class Vote:
    """What a majority said."""

    place: int
    """The first sample that says it."""
    share: float
    """Of all samples, those without an answer included; 0 where none has one."""


def majority_vote(answers: Sequence[Hashable | None], weights: Sequence[float]) -> Vote:
    """The most frequent answer (Wang et al. 2022, self-consistency); of equally frequent ones that with the larger sum
    of weights, then the one said first. None is no answer and has no vote."""
    votes: dict[Hashable, list[int]] = {}
    for place, answer in enumerate(answers):
        if answer is not None:
            votes.setdefault(answer, []).append(place)
    if not votes:
        return Vote(0, 0.0)
    won = max(votes.values(), key=lambda places: (len(places), math.fsum(weights[place] for place in places)))
    return Vote(won[0], len(won) / len(answers))


def top_states(scores: Sequence[float], states: Sequence[Hashable], width: int) -> list[int]:
    """The places of the `width` best-scored different states, best first; of equal scores the first."""
    first: dict[Hashable, int] = {}
    for place, state in enumerate(states):
        first.setdefault(state, place)
    return sorted(first.values(), key=lambda place: -scores[place])[:width]


def final_state(scores: Sequence[float], ended: Sequence[bool]) -> int:
    """The place a search ends with: the best-scored of those that have come to an end, or else of all."""
    return max(range(len(scores)), key=lambda place: (ended[place], scores[place]))
