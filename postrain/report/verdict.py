"""What a sweep says, in sentences: the best setting against the next, over shared seeds, in every quantity of the
question; against the untrained model; and which settings collapsed.

Differences are paired: seed 3 of one setting minus seed 3 of the other. Seeds share data order and samples, so that the
interval of the differences is narrower than that of two separate means. A difference is decided when its 95 % interval
(Student's t) leaves 0 out, and with fewer than two shared seeds never.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf

from postrain.evaluation.intervals import Interval, mean_interval
from postrain.formatting import figure, short
from postrain.jsonl import number
from postrain.metrics import bounds
from postrain.report.study import SweepResult, number_that_varies
from postrain.report.study_cells import Cell, JobResult, before


def verdict(study: SweepResult) -> list[str]:
    """The answer, a sentence or two a line; empty while no job has finished."""
    if not any(cell.n for cell in study.cells):
        return []
    return [*_compared(study), *_range(study), *_against_untrained(study), *_collapsed(study)]


def paired(one: Mapping[int | None, float], other: Mapping[int | None, float], metric: str) -> tuple[Interval, int]:
    """The mean of the differences over shared seeds with its 95 % interval, and how many seeds are shared.

    A difference of two shares lies between -1 and 1; without a shared seed the value is nan.
    """
    gaps = [one[seed] - other[seed] for seed in one if seed in other]
    if not gaps:
        return Interval(float("nan"), -inf, inf), 0
    low, high = bounds(metric)
    return mean_interval(gaps, low - high, high - low) if high < inf else mean_interval(gaps), len(gaps)


def values_of(cell: Cell, metric: str) -> dict[int | None, float]:
    """A metric by seed."""
    return {job.seed: job.values[metric] for job in cell.jobs if metric in job.values}


def told(value: Interval) -> str:
    """A mean with its interval, where there is one: several seeds that differ."""
    if not -inf < value.low < value.high:
        return figure(value.value)
    return f"{figure(value.value)} [{figure(value.low)}, {figure(value.high)}]"


def _compared(study: SweepResult) -> Iterable[str]:
    """The best and the next."""
    metric, ranked = study.metric, study.ranked
    if metric is None:
        own = dict.fromkeys(job.metric for job in study.jobs if job.values and job.metric)
        why = f"they are judged by {', '.join(own)}" if len(own) > 1 else "the reward itself varies"
        yield f"No metric compares the settings: {why}. Name one with sweep.metric=NAME."
    elif len(ranked) == 1:
        yield f"{_has(ranked[0], metric)}; no other finished setting has it, so there is nothing to compare."
    elif ranked:
        best, following = ranked[:2]
        name = f"the {'highest' if study.direction == 'max' else 'lowest'} {short(metric)}"
        means = [f"{told(cell.values[metric])} (n={cell.n})" for cell in (best, following)]
        yield f"{best.label} has {name}, {means[0]}; next is {following.label} with {means[1]}."
        yield f"{_difference(best, following, metric, study.direction)}"
        for other in study.quantities[1:]:
            if other in best.values and other in following.values:
                both = f"{told(best.values[other])} against {told(following.values[other])}"
                yield f"{short(other).capitalize()}: {both}. {_difference(best, following, other)}"


def _has(cell: Cell, metric: str) -> str:
    return f"{cell.label} has {short(metric)} {told(cell.values[metric])} (n={cell.n})"


def _difference(one: Cell, other: Cell, metric: str, direction: str | None = None) -> str:
    """The paired difference, and what it decides; better where a direction is given, else larger or smaller."""
    gap, n = paired(values_of(one, metric), values_of(other, metric), metric)
    if n == 0:
        return f"{one.label} and {other.label} share no finished seed: undecided."
    seeds = f"{n} shared seed{'s' if n > 1 else ''}"
    found = f"Paired difference over {seeds}: {told(gap)}"
    if n == 1:
        return f"{found}. One seed does not tell whether that is chance: undecided."
    if gap.low <= 0 <= gap.high:
        return f"{found}: undecided, it may be chance."
    word = "is better" if direction else f"has {'more' if gap.value > 0 else 'less'}"
    return f"{found}: {one.label} {word}."


def _range(study: SweepResult) -> Iterable[str]:
    """What a number that varies does from its one end to the other, where the best and the next are not both ends."""
    key = number_that_varies(study)
    judged = sorted(study.ranked, key=lambda cell: number(cell.settings.get(key)) or 0.0) if key else []
    if len(judged) < 3 or len(study.settings) > 1:
        return
    first, last = judged[0], judged[-1]
    found = []
    for metric in study.quantities:
        gap, n = paired(values_of(last, metric), values_of(first, metric), metric)
        if n:
            found.append(f"{short(metric)} {'+' if gap.value > 0 else ''}{told(gap)}")
    if found:
        yield f"From {first.label} to {last.label}: {', '.join(found)}."


def _against_untrained(study: SweepResult) -> Iterable[str]:
    """Whether the best setting is better than what it started from, over its own seeds."""
    metric, best = study.metric, next(iter(study.ranked), None)
    if metric is None or best is None:
        return
    start = {seed: value for (name, seed), value in before(best).items() if name == metric}
    gap, n = paired(values_of(best, metric), start, metric)
    if n == 0:
        return
    gains = gap.value > 0 if study.direction == "max" else gap.value < 0
    around = told(mean_interval(list(start.values()), *bounds(metric)))
    found = f"Untrained: {short(metric)} {around}; {best.label} changes it by {told(gap)}"
    if not gains:
        yield f"{found}: no setting is better than the untrained model."
    elif n > 1 and gap.low <= 0 <= gap.high:
        yield f"{found}: undecided, it may be chance."
    else:
        yield f"{found}."


def _collapsed(study: SweepResult) -> Iterable[str]:
    """The settings whose policies collapsed, with the plainest case of each."""
    for cell in study.cells:
        lost: tuple[JobResult, ...] = cell.collapsed
        if lost:
            share = "" if cell.n == 1 else f" in {len(lost)} of {cell.n} jobs"
            yield f"{cell.label} collapsed{share}: {lost[0].collapse}. Its {_pay(study)} is not that of useful text."


def _pay(study: SweepResult) -> str:
    return short(study.metric) if study.metric else "result"
