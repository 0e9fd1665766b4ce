"""intervals.py against published and worked numbers."""

from __future__ import annotations

import random
from math import inf, isnan

import pytest

from postrain.evaluation.intervals import bootstrap_interval, mean_interval, wilson


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
