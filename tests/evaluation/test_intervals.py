"""intervals.py against published and worked numbers."""

from __future__ import annotations

import random
from math import exp, inf, isnan

import pytest

from postrain.evaluation.estimate import bootstrap_interval, jackknife_interval, mean_interval, wilson, within


def test_wilson_worked_numbers() -> None:
    # 8 of 10: z² = 3.8415; middle (0.8 + 0.19207) / 1.38415 = 0.71674;
    # half 1.95996 / 1.38415 · sqrt(0.016 + 3.8415 / 400) = 0.22659
    interval = wilson(8, 10)
    assert (interval.low, interval.high) == (pytest.approx(0.49016, abs=1e-4), pytest.approx(0.94333, abs=1e-4))


def test_wilson_at_the_edges() -> None:
    # all of n right: low = n / (n + z²) = 10 / 13.8415 = 0.72247
    assert wilson(10, 10).low == pytest.approx(0.72247, abs=1e-4)
    assert wilson(10, 10).high == pytest.approx(1.0)
    assert wilson(0, 10).low == 0.0
    assert isnan(wilson(0, 0).value)


def test_mean_of_three_seeds() -> None:
    # 1, 2, 3: mean 2, deviation 1; half 4.3027 / sqrt(3) = 2.4842
    interval = mean_interval([1, 2, 3])
    assert (interval.value, interval.low, interval.high) == (
        2,
        pytest.approx(-0.4842, abs=1e-4),
        pytest.approx(4.4842, abs=1e-4),
    )
    assert mean_interval([5]).high == inf


def test_student_becomes_normal() -> None:
    # ±1 a hundred times and one 0: mean 0, deviation 1 (100 squares over 100 degrees); t there is 1.98397
    interval = mean_interval([1, -1] * 50 + [0])
    assert interval.high == pytest.approx(1.98397 / 101**0.5, rel=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_bootstrap_is_near_student_for_many_values_and_repeats(seed: int) -> None:
    generator = random.Random(seed)
    values = [generator.gauss(1, 2) for _ in range(200)]
    ours, student = bootstrap_interval(values, seed), mean_interval(values)
    assert ours == bootstrap_interval(values, seed)
    assert ours.low == pytest.approx(student.low, abs=0.05)
    assert ours.high == pytest.approx(student.high, abs=0.05)


def test_an_interval_of_a_quantity_that_is_at_least_0_is_taken_on_the_log_scale() -> None:
    # half / value = 0.42 / 0.44 on the log scale: 0.44 · e^∓0.95455
    interval = within(0.44, 0.42, 0)
    assert (interval.low, interval.high) == pytest.approx((0.44 * exp(-0.42 / 0.44), 0.44 * exp(0.42 / 0.44)))
    # A log-probability is at most 0.
    assert within(-0.44, 0.42, -inf, 0).high == pytest.approx(-interval.low)
    # A perplexity is at least 1: the distance from 1 is what varies.
    assert within(1.44, 0.42, 1).low == pytest.approx(1 + interval.low)


def test_an_interval_of_a_share_is_taken_on_the_logit_scale() -> None:
    # logit 0.9 = 2.19722; half 0.2 / (0.9 · 0.1) = 2.22222: between 1 / (1 + e^0.025) and 1 / (1 + e^-4.41944)
    interval = within(0.9, 0.2, 0, 1)
    assert (interval.low, interval.high) == pytest.approx((0.493750, 0.988102), abs=1e-5)
    # A difference of two shares lies between -1 and 1; the same on twice the length.
    difference = within(0.8, 0.4, -1, 1)
    assert (difference.low, difference.high) == pytest.approx((2 * interval.low - 1, 2 * interval.high - 1))


@pytest.mark.parametrize(("low", "high"), [(0.0, inf), (1.0, inf), (0.0, 1.0), (-1.0, 1.0)])
def test_an_interval_never_leaves_the_bounds_and_holds_the_value(low: float, high: float) -> None:
    generator = random.Random(0)
    top = min(high, 50.0)
    for _ in range(300):
        values = [generator.uniform(low, top) ** generator.choice([1, 3]) for _ in range(generator.randint(2, 5))]
        values = [min(max(value, low), top) for value in values]
        interval = mean_interval(values, low, high)
        assert low <= interval.low <= interval.value + 1e-12
        assert interval.value - 1e-12 <= interval.high <= high


def test_far_from_a_bound_the_interval_is_the_symmetric_one() -> None:
    assert within(100.0, 0.5, 0).high == pytest.approx(100.5, abs=2e-3)
    assert within(0.5, 0.001, 0, 1).low == pytest.approx(0.499, abs=1e-6)


def test_values_beyond_the_bounds_and_values_without_spread() -> None:
    # What is negative is not a KL, whatever it is called.
    assert within(-0.1, 0.5, 0).low == pytest.approx(-0.6)
    assert mean_interval([-1.0, 2.0], 0) == mean_interval([-1.0, 2.0])
    assert mean_interval([0.1, 0.1, 0.1], 0, 1).low == mean_interval([0.1, 0.1, 0.1], 0, 1).high
    # Rounding is forgiven.
    assert mean_interval([-1e-9, 1e-9], 0).low == 0
    assert jackknife_interval(0.5, [0.4, 0.6], 0, 1).low > 0
