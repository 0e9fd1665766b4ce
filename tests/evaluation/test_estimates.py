"""Estimates: numbers with intervals, against worked arithmetic."""

from __future__ import annotations

import math

import pytest

from postrain.evaluation.intervals import Z
from postrain.evaluation.measures import Estimate


def test_a_ratio_is_of_totals_and_its_interval_leaves_each_item_out() -> None:
    # 6 nats over 3 tokens: 2; without the first item 4 / 1, without the second 2 / 2.
    # Their mean is 2.5, the squares 2.25 each: error sqrt(1/2 · 4.5) = 1.5.
    found = Estimate.ratio([2.0, 4.0], [2, 1])
    assert (found.value, found.n) == (2.0, 2)
    assert found.high - found.value == pytest.approx(Z * 1.5)
    assert found.value - found.low == pytest.approx(Z * 1.5)


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    # 1, 2, 3: deviation 1, error 1 / sqrt(3); left out one by one the means are 2.5, 2, 1.5.
    found = Estimate.jackknife(2.0, [2.5, 2.0, 1.5])
    assert found.high - found.value == pytest.approx(Z / math.sqrt(3))


def test_one_item_says_nothing_of_others() -> None:
    assert math.isinf(Estimate.ratio([2.0], [1]).high)
    assert Estimate.ratio([2.0], [1]).within(0, 5) == Estimate(value=2.0, low=0, high=5, n=0)


def test_half_a_hit_counts_half() -> None:
    assert Estimate.share([1, 0.5, 0, 0.5]).value == 0.5
    assert Estimate.mean([1, 2, 6]).value == 3
