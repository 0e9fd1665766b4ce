"""Estimates and their intervals against independently worked numbers."""

from __future__ import annotations

import math
import random
from math import exp, inf, isnan

import pytest

from postrain.evaluation.estimate import (
    Estimate,
    jackknife_interval,
    mean_interval,
    student,
    wilson,
    within,
)


def test_wilson_interval_matches_worked_example() -> None:
    # 8 of 10: z² = 3.8415; middle (0.8 + 0.19207) / 1.38415 = 0.71674;
    # half 1.95996 / 1.38415 · sqrt(0.016 + 3.8415 / 400) = 0.22659
    interval = wilson(8, 10)
    assert (interval.low, interval.high) == (pytest.approx(0.49016, abs=1e-4), pytest.approx(0.94333, abs=1e-4))


def test_wilson_interval_at_shares_of_0_and_1() -> None:
    # all of n correct: low = n / (n + z²) = 10 / 13.8415 = 0.72247
    assert wilson(10, 10).low == pytest.approx(0.72247, abs=1e-4)
    assert wilson(10, 10).high == pytest.approx(1.0)
    assert wilson(0, 10).low == 0.0
    assert isnan(wilson(0, 0).value)


def test_mean_interval_of_three_values_uses_student_t() -> None:
    # 1, 2, 3: mean 2, deviation 1; half 4.3027 / sqrt(3) = 2.4842
    interval = mean_interval([1, 2, 3])
    assert (interval.value, interval.low, interval.high) == (
        2,
        pytest.approx(-0.4842, abs=1e-4),
        pytest.approx(4.4842, abs=1e-4),
    )
    assert mean_interval([5]).high == inf


def test_t_quantile_beyond_the_table() -> None:
    # ±1 a hundred times and one 0: mean 0, deviation 1 (100 squares over 100 degrees); t there is 1.98397
    interval = mean_interval([1, -1] * 50 + [0])
    assert interval.high == pytest.approx(1.98397 / 101**0.5, rel=1e-3)


def test_interval_with_one_bound_uses_the_log_scale() -> None:
    # half / value = 0.42 / 0.44 on the log scale: 0.44 · e^∓0.95455
    interval = within(0.44, 0.42, 0)
    assert (interval.low, interval.high) == pytest.approx((0.44 * exp(-0.42 / 0.44), 0.44 * exp(0.42 / 0.44)))
    # A log-probability is at most 0.
    assert within(-0.44, 0.42, -inf, 0).high == pytest.approx(-interval.low)
    # A perplexity is at least 1: the scale is the log of the distance from 1.
    assert within(1.44, 0.42, 1).low == pytest.approx(1 + interval.low)


def test_interval_with_two_bounds_uses_the_logit_scale() -> None:
    # logit 0.9 = 2.19722; half 0.2 / (0.9 · 0.1) = 2.22222: between 1 / (1 + e^0.025) and 1 / (1 + e^-4.41944)
    interval = within(0.9, 0.2, 0, 1)
    assert (interval.low, interval.high) == pytest.approx((0.493750, 0.988102), abs=1e-5)
    # A difference of two shares lies between -1 and 1: the same interval, twice as wide.
    difference = within(0.8, 0.4, -1, 1)
    assert (difference.low, difference.high) == pytest.approx((2 * interval.low - 1, 2 * interval.high - 1))


@pytest.mark.parametrize(("low", "high"), [(0.0, inf), (1.0, inf), (0.0, 1.0), (-1.0, 1.0)])
def test_interval_stays_within_bounds_and_contains_the_value(low: float, high: float) -> None:
    generator = random.Random(0)
    top = min(high, 50.0)
    for _ in range(300):
        values = [generator.uniform(low, top) ** generator.choice([1, 3]) for _ in range(generator.randint(2, 5))]
        values = [min(max(value, low), top) for value in values]
        interval = mean_interval(values, low, high)
        assert low <= interval.low <= interval.value + 1e-12
        assert interval.value - 1e-12 <= interval.high <= high


def test_interval_far_from_bounds_is_symmetric() -> None:
    assert within(100.0, 0.5, 0).high == pytest.approx(100.5, abs=2e-3)
    assert within(0.5, 0.001, 0, 1).low == pytest.approx(0.499, abs=1e-6)


def test_interval_of_values_outside_bounds_or_without_spread() -> None:
    # A value below the bound gets the symmetric interval.
    assert within(-0.1, 0.5, 0).low == pytest.approx(-0.6)
    assert mean_interval([-1.0, 2.0], 0) == mean_interval([-1.0, 2.0])
    assert mean_interval([0.1, 0.1, 0.1], 0, 1).low == mean_interval([0.1, 0.1, 0.1], 0, 1).high
    # Values within rounding of the bound count as inside.
    assert mean_interval([-1e-9, 1e-9], 0).low == 0
    assert jackknife_interval(0.5, [0.4, 0.6], 0, 1).low > 0


def test_ratio_is_of_totals_with_a_jackknife_interval() -> None:
    # 6 nats over 3 tokens: 2; without the first item 4 / 1, without the second 2 / 2.
    # Their mean is 2.5, the squares 2.25 each: error sqrt(1/2 · 4.5) = 1.5.
    found = Estimate.ratio([2.0, 4.0], [2, 1])
    assert (found.value, found.n) == (2.0, 2)
    # Nats are never below 0: on the log scale the half width is 12.7062 · 1.5 / 2 around log 2.
    assert (found.low, found.high) == pytest.approx((2 * math.exp(-student(1) * 0.75), 2 * math.exp(student(1) * 0.75)))
    # Totals of both signs have a symmetric interval.
    free = Estimate.ratio([2.0, -4.0], [2, 1])
    assert free.value - free.low == pytest.approx(free.high - free.value)


def test_jackknife_error_of_a_mean_is_its_standard_error() -> None:
    # 1, 2, 3: deviation 1, error 1 / sqrt(3); left out one by one the means are 2.5, 2, 1.5.
    found = Estimate.jackknife(2.0, [2.5, 2.0, 1.5])
    assert found.high - found.value == pytest.approx(student(2) / math.sqrt(3))


def test_interval_of_one_item_is_infinite() -> None:
    assert math.isinf(Estimate.ratio([2.0], [1]).high)
    assert math.isinf(Estimate.mean([3.0]).high)


def test_ratio_without_counts_is_nan() -> None:
    found = Estimate.ratio([0.0, 0.0], [0, 0])
    assert math.isnan(found.value)
    assert (found.low, found.high, found.n) == (-math.inf, math.inf, 0)
    # An item without tokens is left out.
    assert Estimate.ratio([2.0, 0.0, 4.0], [2, 0, 1]) == Estimate.ratio([2.0, 4.0], [2, 1])


def test_interval_of_no_and_of_all_successes_ends_at_the_share() -> None:
    # The ends are 0 and 1; in floats the lower one of 0 in 3 came out as 6e-17, the upper one of 4 in 4 below 1.
    assert (Estimate.share([0] * 3).low, Estimate.share([1] * 4).high) == (0, 1)


def test_mean_of_few_values_uses_student_t() -> None:
    # 1, 2, 3: deviation 1; half 4.3027 / sqrt(3) = 2.4842
    assert Estimate.mean([1, 2, 3]).high == pytest.approx(4.4842, abs=1e-4)


def test_share_of_fractions_uses_the_interval_of_the_mean_unless_all_are_equal() -> None:
    # 0.6 and 0.8, three times each: mean 0.7, deviation 0.1 · sqrt(6 / 5); half 2.5706 · 0.10954 / sqrt(6) = 0.11496,
    # on the logit scale 0.11496 / (0.7 · 0.3) = 0.54743 above ln(0.7 / 0.3) = 0.84730: 1 / (1 + e^-1.39473) = 0.80135
    assert Estimate.share([0.6, 0.8] * 3).high == pytest.approx(0.80135, abs=1e-4)
    # Wilson's interval of 2.1 in 3
    assert Estimate.share([0.7] * 3).high - Estimate.share([0.7] * 3).low > 0.5
    assert 0 < Estimate.share([0.01, 0.99]).low < 0.5 < Estimate.share([0.01, 0.99]).high < 1


def test_paired_difference_of_few_items_has_a_nonzero_width() -> None:
    # n + 2 = 6 observations: middle 4/6, variance 5/6 - 16/36 = 0.38889; half 3.1824 · sqrt(0.38889 / 6) = 0.81022
    found = Estimate.paired([1, 1, 1, 1], [0, 0, 0, 0])
    assert (found.value, found.high, found.n) == (1, 1, 4)
    assert found.low == pytest.approx(4 / 6 - 0.81022, abs=1e-4)
    assert Estimate.paired([1] * 12, [0] * 12).low > 0.5
    assert (Estimate.paired([1], [0]).low, Estimate.paired([1], [0.5]).high) == (-1, 1)
    assert Estimate.gain([1, 1, 1, 1]) == found
    # Lengths are not shares: every difference is 1, so the width is 0.
    assert Estimate.paired([5, 9, 7], [4, 8, 6]).low == 1


def test_share_counts_half_hits() -> None:
    assert Estimate.share([1, 0.5, 0, 0.5]).value == 0.5
    assert Estimate.mean([1, 2, 6]).value == 3


def test_quantiles_of_students_t_are_those_of_tables():
    known = {1: 12.70620, 2: 4.30265, 3: 3.18245, 10: 2.22814, 30: 2.04227}
    assert {degrees: round(student(degrees), 5) for degrees in known} == known
    # Two degrees have a closed form: t = √2 · p / √(1 − p²) for the mass p between −t and t.
    assert student(2, 0.975) == pytest.approx(math.sqrt(2) * 0.975 / math.sqrt(1 - 0.975**2))
    # The derivative by the degrees is about −(z³ + z) / (4 · 200²) = −6e-5.
    assert student(200) - student(201) == pytest.approx(6e-5, abs=5e-6)
