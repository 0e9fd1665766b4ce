"""Metrics of single held-out rows, from held_out.jsonl: intervals of their last values and of their changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import exp, inf
from statistics import fmean

from postrain.evaluation.estimate import Estimate, Interval, newcombe
from postrain.jsonl import Record, number
from postrain.report.values import update_of


@dataclass(frozen=True)
class HeldOutRows:
    """A metric of the same held-out rows in the first and the last evaluation: a sum of totals over a sum of counts."""

    before: Sequence[float]
    """The total of each row before training, such as the loss of all its tokens."""
    after: Sequence[float]
    counts: Sequence[float]
    """What the totals of the last evaluation are sums over: the tokens of a row in the loss, or 1; 0 if it has none."""
    counts_before: Sequence[float] | None = None
    """The same of the first one if it differs, as for the tokens of a completion; else None."""

    @property
    def n(self) -> int:
        """The number of rows with a value in both evaluations: a gold score may not apply to a completion."""
        return sum(1 for one, other in zip(self.counts, self._counts_before, strict=True) if one and other)

    def last(self) -> Estimate:
        """The metric in the last evaluation."""
        known = _values(self.after, self.counts)
        return Estimate.of(known) if known else Estimate.ratio(self.after, self.counts)

    def change(self) -> Estimate:
        """After minus before, over the same rows. The metric may have bounds, its change has none: that no row got
        worse does not exclude 0."""
        after, before = _values(self.after, self.counts), _values(self.before, self._counts_before)
        if after and before and self.counts == self._counts_before:
            return Estimate.paired(after, before)
        if after and before and {*after, *before} <= {0, 0.5, 1}:
            return newcombe(fmean(before), fmean(after), min(len(before), len(after)))
        return Estimate.ratio_gap((self.after, self.counts), (self.before, self._counts_before))

    @property
    def _counts_before(self) -> Sequence[float]:
        return self.counts if self.counts_before is None else self.counts_before

    def change_of_perplexity(self, before: float, after: float) -> Estimate:
        """`after` - `before`, the exponentials of the metric, by a jackknife over rows; 0 is a bound of the interval if
        that of the metric's change excludes it."""
        change = self.change()
        low, high = (0.0 if change.low > 0 else -inf), (0.0 if change.high < 0 else inf)
        columns = (self.before, self._counts_before, self.after, self.counts)
        items = [item for item in zip(*columns, strict=True) if item[1] or item[3]]
        first, last = (_leaving_one_out([item[at : at + 2] for item in items]) for at in (0, 2))
        without = [after * _exp(two) - before * _exp(one) for one, two in zip(first, last, strict=True)]
        return Estimate.jackknife(after - before, without, low, high)

    def perplexity(self, after: float) -> Interval:
        """exp(metric) after training: `after` with the bounds of the metric."""
        last = self.last()
        return Interval(after, after * _exp(last.low - last.value), after * _exp(last.high - last.value))


def read_held_out(records: Iterable[Record]) -> dict[str, HeldOutRows]:
    """The rows of each metric that the first and the last evaluation of a run have saved for the same rows."""
    saved: dict[str, dict[int, tuple[list[float], list[float]]]] = {}
    for record in records:
        totals, counts = (numbers(record.get(name)) for name in ("totals", "counts"))
        if totals and len(totals) == len(counts):
            saved.setdefault(str(record.get("metric")), {})[update_of(record)] = totals, counts
    found = {}
    for name, by_update in saved.items():
        (before, counts_before), (after, counts) = by_update[min(by_update)], by_update[max(by_update)]
        if len(by_update) > 1 and len(counts) == len(counts_before):
            found[name] = HeldOutRows(before, after, counts, None if counts == counts_before else counts_before)
    return found


def _values(totals: Sequence[float], counts: Sequence[float]) -> list[float]:
    """The value of each row that has one; empty if the metric is a mean over tokens."""
    return [total for total, count in zip(totals, counts, strict=True) if count] if set(counts) <= {0, 1} else []


def _leaving_one_out(rows: Sequence[Sequence[float]]) -> list[float]:
    """How leaving out each of the rows, (total, count), changes the sum of totals over the sum of counts."""
    total, count = (sum(column) for column in zip(*rows, strict=True))
    return [(total - one) / (count - other) - total / count if other < count else inf for one, other in rows]


def _exp(value: float) -> float:
    """exp, at most exp(50): the bounds of two rows may be as far as 1,000 nats away."""
    return exp(min(value, 50.0))


def numbers(values: object) -> list[float]:
    """A list of numbers; empty for anything else."""
    found = [number(value) for value in values] if isinstance(values, list) else []
    return [value for value in found if value is not None] if None not in found else []
