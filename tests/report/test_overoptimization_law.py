"""The over-optimisation law fitted to points, with worked numbers."""

from __future__ import annotations

import math

import pytest

from postrain.errors import ConfigError
from postrain.report.overoptimization import Point
from postrain.report.overoptimization_law import fit, kl_at


def test_law_without_noise_is_found():
    # Best of n: R(d) = d · (0.5 − 0.1 · d) above 0.2, at d = 0, 1, 2, 3.
    best = [Point(kl=d * d, proxy=d, gold=0.2 + d * (0.5 - 0.1 * d)) for d in (0.0, 1.0, 2.0, 3.0)]
    found = fit(best, lambda d: d)
    assert (found.alpha, found.beta, found.r2) == pytest.approx((0.5, 0.1, 1.0))
    rl = [
        Point(kl=d * d, proxy=d, gold=0.2 + d * (0.5 - 0.3 * math.log(d)) if d else 0.2) for d in (0.0, 0.5, 2.0, 4.0)
    ]
    found = fit(rl, math.log)
    assert (found.alpha, found.beta, found.r2) == pytest.approx((0.5, 0.3, 1.0))


def test_variance_beyond_the_law_lowers_r2():
    # Gains 1, 0, 1 at d = 1, 2, 3: the normal equations 14 α − 36 β = 4 and 36 α − 98 β = 10 have the determinant 76,
    # so α = 32 / 76 and β = 4 / 76. The law is 28, 48, 60 / 76: errors (48² + 48² + 16²) / 76² = 0.84, spread 2/3.
    points = [Point(kl=d * d, proxy=d, gold=gold) for d, gold in ((0.0, 0.0), (1.0, 1.0), (2.0, 0.0), (3.0, 1.0))]
    found = fit(points, lambda d: d)
    assert (found.alpha, found.beta, found.r2) == pytest.approx((32 / 76, 4 / 76, 1 - (4864 / 5776) / (2 / 3)))


def test_too_few_points_are_one_line():
    points = [Point(kl=kl, proxy=0.0, gold=0.0) for kl in (0.0, 1.0, 1.0, 1.0)]
    with pytest.raises(ConfigError, match=r"three points with different distances to the reference; got 3"):
        fit(points, lambda d: d)


def test_kl_at_a_proxy_reward_is_interpolated():
    points = [
        Point(kl=0.0, proxy=1.0, gold=0.0),
        Point(kl=2.0, proxy=2.0, gold=0.0),
        Point(kl=9.0, proxy=1.5, gold=0.0),
    ]
    assert kl_at(points, 1.25) == 0.5
    assert kl_at(points, 3.0) is None
