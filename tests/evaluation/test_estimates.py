"""Estimates: numbers with intervals, against worked arithmetic."""

from __future__ import annotations

import math

import pytest

from postrain.evaluation.estimate import Estimate, T


def test_a_ratio_is_of_totals_and_its_interval_leaves_each_item_out() -> None:
    # 6 nats over 3 tokens: 2; without the first item 4 / 1, without the second 2 / 2.
    # Their mean is 2.5, the squares 2.25 each: error sqrt(1/2 · 4.5) = 1.5.
    found = Estimate.ratio([2.0, 4.0], [2, 1])
    assert (found.value, found.n) == (2.0, 2)
    # Nats are never below 0: on the log scale the half width is 12.7062 · 1.5 / 2 around log 2.
    assert (found.low, found.high) == pytest.approx((2 * math.exp(-T[0] * 0.75), 2 * math.exp(T[0] * 0.75)))
    # Totals that may be negative have the symmetric one: -2 in all, 2 and -2 / 2 and -4 without each.
    free = Estimate.ratio([2.0, -4.0], [2, 1])
    assert free.value - free.low == pytest.approx(free.high - free.value)


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    # 1, 2, 3: deviation 1, error 1 / sqrt(3); left out one by one the means are 2.5, 2, 1.5.
    found = Estimate.jackknife(2.0, [2.5, 2.0, 1.5])
    assert found.high - found.value == pytest.approx(T[1] / math.sqrt(3))


def test_one_item_says_nothing_of_others() -> None:
    assert math.isinf(Estimate.ratio([2.0], [1]).high)
    assert math.isinf(Estimate.mean([3.0]).high)


def test_where_nothing_is_counted_there_is_no_ratio() -> None:
    found = Estimate.ratio([0.0, 0.0], [0, 0])
    assert math.isnan(found.value)
    assert (found.low, found.high, found.n) == (-math.inf, math.inf, 0)
    # An item without tokens is none: as above without it.
    assert Estimate.ratio([2.0, 0.0, 4.0], [2, 0, 1]) == Estimate.ratio([2.0, 4.0], [2, 1])


def test_few_values_have_students_interval() -> None:
    # 1, 2, 3: deviation 1; half 4.3027 / sqrt(3) = 2.4842
    assert Estimate.mean([1, 2, 3]).high == pytest.approx(4.4842, abs=1e-4)


def test_fractions_vary_less_than_hits_and_equal_ones_say_nothing_of_how_they_vary() -> None:
    # 0.6 and 0.8, three times each: mean 0.7, deviation 0.1 · sqrt(6 / 5); half 2.5706 · 0.10954 / sqrt(6) = 0.11496,
    # on the logit scale 0.11496 / (0.7 · 0.3) = 0.54743 above ln(0.7 / 0.3) = 0.84730: 1 / (1 + e^-1.39473) = 0.80135
    assert Estimate.share([0.6, 0.8] * 3).high == pytest.approx(0.80135, abs=1e-4)
    # Wilson's of 2.1 in 3
    assert Estimate.share([0.7] * 3).high - Estimate.share([0.7] * 3).low > 0.5
    assert 0 < Estimate.share([0.01, 0.99]).low < 0.5 < Estimate.share([0.01, 0.99]).high < 1


def test_four_right_against_four_wrong_are_no_certainty() -> None:
    # Six with the two made up: middle 4/6, variance 5/6 - 16/36 = 0.38889; half 3.1824 · sqrt(0.38889 / 6) = 0.81022
    found = Estimate.paired([1, 1, 1, 1], [0, 0, 0, 0])
    assert (found.value, found.high, found.n) == (1, 1, 4)
    assert found.low == pytest.approx(4 / 6 - 0.81022, abs=1e-4)
    assert Estimate.paired([1] * 12, [0] * 12).low > 0.5
    assert (Estimate.paired([1], [0]).low, Estimate.paired([1], [0.5]).high) == (-1, 1)
    assert Estimate.gain([1, 1, 1, 1]) == found
    # Lengths are no shares: each is one longer, whatever they are.
    assert Estimate.paired([5, 9, 7], [4, 8, 6]).low == 1


def test_half_a_hit_counts_half() -> None:
    assert Estimate.share([1, 0.5, 0, 0.5]).value == 0.5
    assert Estimate.mean([1, 2, 6]).value == 3
