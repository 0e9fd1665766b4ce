"""rules.py: worked examples, and the closed forms against an enumeration of all subsets."""

from __future__ import annotations

import math
from itertools import combinations
from statistics import fmean

import pytest

from postrain.evaluation.scaling.rules import (
    Vote,
    best_of_n_kl,
    expected_best_of_n,
    final_state,
    majority_vote,
    powers_of_two,
    top_states,
)

SCORES = (0.3, None, 0.9, 0.3, 0.1, 0.9)
GRADES = (1.0, 0.0, 0.0, 0.0, 1.0, 1.0)


def test_kl_of_the_best_of_n():
    # ln 4 − 3/4 = 1.3863 − 0.75
    assert best_of_n_kl(4) == pytest.approx(0.6363, abs=1e-4)
    assert best_of_n_kl(1) == 0


def test_sizes_are_powers_of_two():
    assert powers_of_two(1) == (1,)
    assert powers_of_two(16) == (1, 2, 4, 8, 16)
    assert powers_of_two(12) == (1, 2, 4, 8)


def chosen_grade(indices: tuple[int, ...]) -> float:
    """The grade of the best-scored of these samples; ties are broken uniformly, unscored samples rank last."""
    scores = [-math.inf if (score := SCORES[index]) is None else score for index in indices]
    return fmean(GRADES[index] for index, score in zip(indices, scores, strict=True) if score == max(scores))


@pytest.mark.parametrize("n", range(1, 7))
def test_best_of_n_is_the_mean_over_all_subsets(n):
    enumerated = fmean(chosen_grade(indices) for indices in combinations(range(6), n))
    assert expected_best_of_n(SCORES, GRADES, n) == pytest.approx(enumerated)


@pytest.mark.parametrize(("correct", "total", "k"), [(0, 5, 2), (1, 5, 2), (3, 5, 2), (4, 16, 8), (5, 5, 1)])
def test_best_of_n_selected_by_correctness_is_pass_at_k(correct, total, k):
    grades = [1.0] * correct + [0.0] * (total - correct)
    expected = 1 - math.comb(total - correct, k) / math.comb(total, k)
    assert expected_best_of_n(grades, grades, k) == pytest.approx(expected)


def test_pass_at_2_of_one_in_five():
    # 1 − C(4, 2)/C(5, 2) = 1 − 6/10
    assert expected_best_of_n([1, 0, 0, 0, 0], [1, 0, 0, 0, 0], 2) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("answers", "weights", "vote"),
    [
        ("779", (0.1, 0.1, 0.9), Vote(0, 2 / 3)),
        ("97799", (0.5,) * 5, Vote(0, 3 / 5)),
        # Two votes each: 0.2 + 0.3 for 7, 0.4 + 0.4 for 9.
        ("7979", (0.2, 0.4, 0.3, 0.4), Vote(1, 1 / 2)),
        ("79", (0.5, 0.5), Vote(0, 1 / 2)),
        ((None, None, "7", None), (1, 1, 1, 1), Vote(2, 1 / 4)),
        ((None, None), (1, 1), Vote(0, 0)),
    ],
)
def test_majority_vote_and_its_ties(answers, weights, vote):
    assert majority_vote(tuple(answers), weights) == vote


def test_top_states_are_distinct_and_sorted():
    assert top_states([0.2, 0.9, 0.9, 0.5], ["a", "b", "b", "c"], 2) == [1, 3]
    assert top_states([0.2, 0.9, 0.9, 0.5], ["a", "b", "c", "d"], 2) == [1, 2]
    assert top_states([0.1], ["a"], 4) == [0]


def test_final_state_prefers_finished_states():
    assert final_state([0.9, 0.2, 0.4], [False, True, True]) == 2
    assert final_state([0.9, 0.2], [False, False]) == 0
