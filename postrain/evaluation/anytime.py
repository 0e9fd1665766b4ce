"""Anytime-valid intervals of a mean: looked at after every new value, all of them hold at once with their confidence.

Student's interval holds for a number of values that was fixed before. Who looks after every seed and stops as soon as
it excludes 0 finds differences where there are none: in a fifth of all A/A comparisons up to 12 seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, sqrt
from statistics import fmean

from postrain.evaluation.estimate import Interval, spread, spread_is_known

EFFECT = 3.0
"""Standard deviation of the mixture over effects, in standard deviations of a value. Intervals are narrowest where a
mean is about this far from 0: a large value decides large differences after few seeds."""


def anytime_interval(values: Sequence[float], error: float = 0.05, effect: float = EFFECT) -> Interval:
    """The mean of independent normal values with an interval that misses the true mean at any time with at most the
    probability `error`; infinite for few values and for equal ones.

    Under mean m, the likelihood ratio of the t statistic t = √n · (x̄ - m) / s, mixed over true effects N(0, g) with
    g = effect², is a martingale of mean 1 (Wang and Ramdas 2023, arXiv:2310.03722; Rouder et al. 2009, the Bayes factor
    of a fixed g):

        M_n = (1 + n·g)^(-1/2) · [(1 + x) / (1 + x / (1 + n·g))]^(n/2)   with x = t² / (n - 1)

    By Ville's inequality P(some M_n ≥ 1/error) ≤ error. The interval holds all m with M_n < 1/error: with
    k = (√(1 + n·g) / error)^(2/n) those with x < (k - 1) / (1 - k / (1 + n·g)), all if k ≥ 1 + n·g.
    """
    n, mean = len(values), fmean(values)
    limit = 1 + n * effect**2
    k = (sqrt(limit) / error) ** (2 / n)
    if k >= limit or not spread_is_known(values):
        return Interval(mean, -inf, inf)
    half = spread(values) * sqrt((n - 1) / n * (k - 1) / (1 - k / limit))
    return Interval(mean, mean - half, mean + half)
