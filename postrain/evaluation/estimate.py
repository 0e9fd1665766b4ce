"""Estimates with 95 % intervals: shares, means, ratios, paired differences. Does not import torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from math import cos, exp, inf, isclose, isfinite, pi, sin, sqrt, tan
from statistics import NormalDist, fmean, stdev

from postrain.formatting import with_interval

ROUNDING = 1e-6
LONGEST_STEP = 700.0  # e to this power is still a float
Z = 1.959964  # 97.5 % quantile of the normal distribution
MANY = 200  # degrees of freedom
TotalsCounts = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Interval:
    """An estimate and the 95 % interval around it."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return with_interval(self.value, self.low, self.high)


def reaches(total: float, threshold: float | None) -> bool:
    """Whether a reward reaches a threshold, if there is one. Rewards are float32: a weighted sum of exactly 1 may be
    smaller by ROUNDING."""
    return threshold is None or total >= threshold - ROUNDING


def within(value: float, half: float, low: float = -inf, high: float = inf) -> Interval:
    """The interval `value` ± `half`, kept inside [`low`, `high`] by the delta method on an unbounded scale.

    A KL is at least 0 and a share lies in [0, 1], which a symmetric interval ignores. The scale is the log of the
    distance from a single bound, or the logit between two; the half width is `half` times the derivative of the scale
    at `value`, and the ends are transformed back (Agresti 2013, Categorical Data Analysis, section 3.1; the logit
    interval). The result contains `value`, is asymmetric near a bound, and approaches value ± half far from it. A value
    outside the bounds gets the symmetric interval; for a value on a bound the interval is clipped.
    """
    if low == -inf and high < inf:
        mirrored = within(-value, half, -high)
        return Interval(value, -mirrored.high, -mirrored.low)
    plain = Interval(value, value - half, value + half)
    if low == -inf or not enclosed([value], low, high) or not isfinite(half) or half == 0:
        return plain
    if not low < value < high:
        return Interval(value, max(plain.low, low), min(plain.high, high))
    above, below = value - low, high - value
    # 1 / (derivative of the inverse): d/dv log(v - low) = 1 / above; d/dv logit = (high - low) / (above · below).
    step = half / above if below == inf else half * (1 / above + 1 / below)
    shrink = exp(-min(step, LONGEST_STEP))
    if below == inf:
        return Interval(value, low + above * shrink, low + above / shrink)
    return Interval(
        value,
        low + (high - low) * above * shrink / (above * shrink + below),
        low + (high - low) * above / (above + below * shrink),
    )


def enclosed(values: Iterable[float], low: float, high: float) -> bool:
    """Whether all values lie within the bounds, up to rounding: the KL of equal models may be -1e-9."""
    return all(low - ROUNDING <= value <= high + ROUNDING for value in values)


@cache
def student(degrees: int, level: float = 0.95) -> float:
    """The t with P(|T| < t) = `level` for Student's T with at least one degree of freedom.

    Bisects the angle θ of t = √degrees · tan θ; above MANY degrees the first terms of Cornish and Fisher's expansion.
    """
    if degrees > MANY:
        z = NormalDist().inv_cdf((1 + level) / 2)
        return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
    low, high = 0.0, pi / 2
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if _central_mass(middle, degrees) < level else (low, middle)
    return sqrt(degrees) * tan(low)


def _central_mass(angle: float, degrees: int) -> float:
    """P(|T| < √degrees · tan(angle)), the finite series of Abramowitz and Stegun 26.7.3 and 26.7.4."""
    odd = degrees % 2
    term = total = float(degrees > 1)
    for step in range(1, (degrees - odd) // 2):
        term *= cos(angle) ** 2 * ((2 * step) / (2 * step + 1) if odd else (2 * step - 1) / (2 * step))
        total += term
    return 2 / pi * (angle + sin(angle) * cos(angle) * total) if odd else sin(angle) * total


def wilson(successes: float, total: int) -> Interval:
    """A proportion with Wilson's score interval, which is valid near 0 and 1; [0, 1] if `total` is 0."""
    if total == 0:
        return Interval(float("nan"), 0.0, 1.0)
    share, z2 = successes / total, Z * Z
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = Z / (1 + z2 / total) * sqrt(share * (1 - share) / total + z2 / (4 * total * total))
    # Of no and of all successes an end is the share itself, which rounding would miss.
    return Interval(share, min(max(middle - half, 0.0), share), max(min(middle + half, 1.0), share))


def mean_interval(values: Sequence[float], low: float = -inf, high: float = inf, *, level: float = 0.95) -> Interval:
    """A mean with Student's t interval, for independent values such as seeds; infinite for a single value.

    `low` and `high` are the bounds of a single value; see `within`. `level` is the coverage.
    """
    mean, degrees = fmean(values), len(values) - 1
    if degrees == 0:
        return Interval(mean, -inf, inf)
    if not enclosed(values, low, high):
        low, high = -inf, inf
    return within(mean, student(degrees, level) * spread(values) / sqrt(len(values)), low, high)


def gap_interval(gaps: Sequence[float], low: float = -inf, high: float = inf, *, level: float = 0.95) -> Interval:
    """The mean of differences paired by seed, as in `mean_interval`; infinite also for equal ones, as of shares of few
    items: the spread between seeds is then unknown."""
    return mean_interval(gaps, low, high, level=level) if spread_is_known(gaps) else Interval(fmean(gaps), -inf, inf)


def spread_is_known(values: Sequence[float]) -> bool:
    """Whether there are two values that differ."""
    return len(values) > 1 and spread(values) > 0


def spread(values: Sequence[float]) -> float:
    """The standard deviation of at least two values; differences in the last digits are rounding, not spread."""
    return 0.0 if isclose(min(values), max(values), rel_tol=1e-9, abs_tol=1e-12) else stdev(values)


def paired_shares(differences: Sequence[float]) -> Interval:
    """The mean difference of two shares on the same items, each right (1), wrong (0) or half right in both.

    Agresti and Min (2005), with Student's quantile: adds two pseudo-observations, so that a few items with equal
    differences do not give an interval of width 0. A single item has the interval [-1, 1].
    """
    n = len(differences)
    if n == 1:
        return Interval(differences[0], -1.0, 1.0)
    middle = sum(differences) / (n + 2)
    squares = sum(one * one for one in differences) + 1
    half = student(n - 1) * sqrt(squares / (n + 2) - middle * middle) / sqrt(n + 2)
    return Interval(fmean(differences), max(middle - half, -1.0), min(middle + half, 1.0))


def jackknife_interval(value: float, without: Sequence[float], low: float = -inf, high: float = inf) -> Interval:
    """A statistic of n independent items, with Student's t interval of its jackknife error (Efron and Stein 1981).

    `without` is the statistic with each item left out in turn. For statistics that a bootstrap would bias: ratios, and
    numbers of distinct values, which fall when an item is repeated. A single item has an infinite interval.
    `low` and `high` are the bounds of the statistic; see `within`.
    """
    n = len(without)
    if n < 2:
        return Interval(value, -inf, inf)
    mean = fmean(without)
    half = student(n - 1) * sqrt((n - 1) / n * sum((one - mean) ** 2 for one in without))
    return within(value, half, low, high)


@dataclass(frozen=True, kw_only=True)
class Estimate(Interval):
    """A value, its 95 % interval, and the number of observations."""

    n: int

    @classmethod
    def share(cls, hits: Sequence[bool | float]) -> Estimate:
        """The share of hits, with Wilson's interval; half a hit counts half.

        Other fractions, such as the share of a query's phrasings, get the interval of their mean, since they vary less
        than hits. If all are equal their variance is unknown, and the interval is Wilson's.
        """
        if set(hits) <= {0, 0.5, 1} or len(set(hits)) == 1:
            return cls._of(wilson(float(sum(hits)), len(hits)), len(hits))
        return cls.mean(hits, 0, 1)

    @classmethod
    def mean(cls, values: Sequence[float], low: float = -inf, high: float = inf) -> Estimate:
        """The mean of at least one value between `low` and `high`, with Student's interval; infinite for one value."""
        return cls._of(mean_interval(values, low, high), len(values))

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """The mean of at least one value of unknown range.

        A share if all values are 0 or 1; if all are in [0, 1], such as gold scores, the interval is too.
        """
        return cls.share(values) if set(values) <= {0, 1} else cls.mean(values, *_around(values, 0, 1))

    @classmethod
    def paired(cls, mine: Sequence[float], theirs: Sequence[float]) -> Estimate:
        """The mean paired difference of two measurements of the same items, at least one."""
        gaps = [one - other for one, other in zip(mine, theirs, strict=True)]
        whole = {*mine, *theirs} <= {0, 0.5, 1}
        bounds = (-1.0, 1.0) if _around([*mine, *theirs], 0, 1) == (0, 1) else (-inf, inf)
        return cls.gain(gaps) if whole else cls.mean(gaps, *bounds)

    @classmethod
    def gain(cls, gaps: Sequence[float]) -> Estimate:
        """The mean of at least one paired difference of scores, which are usually 0 or 1."""
        shares = set(gaps) <= {-1, -0.5, 0, 0.5, 1}
        if shares:
            return cls._of(paired_shares(gaps), len(gaps))
        return cls.mean(gaps, *_around(gaps, -1, 1))

    @classmethod
    def jackknife(cls, value: float, without: Sequence[float], low: float = -inf, high: float = inf) -> Estimate:
        """A statistic between `low` and `high`, from its values with each item left out."""
        return cls._of(jackknife_interval(value, without, low, high), len(without))

    @classmethod
    def ratio(cls, totals: Sequence[float], counts: Sequence[float]) -> Estimate:
        """The sum of totals over the sum of counts, such as nats/token over rows: not the mean of the items' ratios.

        If all totals are >= 0 (a loss, a KL) or all <= 0 (a log-probability), so is the interval. Items with count 0
        are left out; without items the value is nan.
        """
        items = [(total, count) for total, count in zip(totals, counts, strict=True) if count > 0]
        total, count = sum(total for total, _ in items), sum(count for _, count in items)
        without = [(total - t) / (count - c) for t, c in items] if len(items) > 1 else []
        low, _ = _around([t for t, _ in items], 0, inf)
        _, high = _around([t for t, _ in items], -inf, 0)
        value = total / count if items else float("nan")
        return cls._of(jackknife_interval(value, without, low, high), len(items))

    @classmethod
    def ratio_gap(cls, mine: TotalsCounts, theirs: TotalsCounts) -> Estimate:
        """The ratio of `mine` minus that of `theirs`, as in `ratio`, over the same items with counts of their own.

        Items of both are left out together. If one item has all of a count, the interval is infinite.
        """
        items = [item for item in zip(*mine, *theirs, strict=True) if item[1] or item[3]]
        sums = [sum(column) for column in zip(*items, strict=True)]
        if not items or not sums[1] or not sums[3]:
            return cls(value=float("nan"), low=-inf, high=inf, n=0)

        def gap(total: float, count: float, other_total: float, other_count: float) -> float:
            return total / count - other_total / other_count

        value = gap(*sums)
        if any(item[1] == sums[1] or item[3] == sums[3] for item in items):
            return cls._of(jackknife_interval(value, [value]), len(items))
        without = [gap(*(whole - one for whole, one in zip(sums, item, strict=True))) for item in items]
        return cls.jackknife(value, without)

    @classmethod
    def _of(cls, found: Interval, n: int) -> Estimate:
        return cls(value=found.value, low=found.low, high=found.high, n=n)


def _around(values: Sequence[float], low: float, high: float) -> tuple[float, float]:
    """`low` and `high` if they enclose all values, else infinite bounds."""
    return (low, high) if enclosed(values, low, high) else (-inf, inf)


def newcombe(before: float, after: float, n: int) -> Estimate:
    """after - before, two shares of `n` rows each, with the interval of Newcombe (1998, Statistics in Medicine 17,
    method 10), from the Wilson intervals of both."""
    one, two = wilson(before * n, n), wilson(after * n, n)
    low = sqrt((after - two.low) ** 2 + (one.high - before) ** 2)
    high = sqrt((two.high - after) ** 2 + (before - one.low) ** 2)
    return Estimate(value=after - before, low=after - before - low, high=after - before + high, n=n)
