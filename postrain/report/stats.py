"""Intervals from the samples of a run, and its evaluation_stats.json, in the form an evaluation by command writes.

The samples are those that were shown; where an evaluation drew more than it shows, the interval is wider than it could
be, and its n says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from postrain.evaluation.intervals import Interval, mean_interval
from postrain.report.run_data import RunData, Sample

LEAST = 8
"""Fewer samples say little about a spread."""


def interval(samples: Sequence[Sample], metric: str, value: float) -> tuple[Interval, int] | None:
    """The 95 % interval of a metric's value over samples, and n; None for a metric that is no score of samples.

    Nor is there one where the value lies outside: the samples are too few of all, or scored otherwise.
    """
    name = metric.removeprefix("eval/")
    values = [sample.scores[name] for sample in samples if name in sample.scores]
    if len(values) < LEAST:
        return None
    found = mean_interval(values)
    return (found, len(values)) if found.low <= value <= found.high else None


def run_stats(run: RunData, groups: Sequence[tuple[str, Sequence[Sample]]]) -> dict[str, Any]:
    """The held-out metrics before training and after it."""
    ends = {"before": 0, "after": -1, "sample": -1}
    return {"subjects": [_subject(run, tag, samples, ends[tag]) for tag, samples in groups], "notes": []}


def _subject(run: RunData, tag: str, samples: Sequence[Sample], end: int) -> dict[str, Any]:
    metrics = {}
    for name, (_, values) in run.metrics.items():
        if name.startswith(("eval/", "gold/")):
            found = interval(samples, name, values[end])
            around = {"low": found[0].low, "high": found[0].high, "n": found[1]} if found else {}
            metrics[name] = {"value": values[end], "low": None, "high": None, "n": None} | around
    measures = {"held_out": {"metrics": metrics, "example": "", "curves": {}, "notes": [], "seconds": None}}
    return {"name": tag, "path": str(run.path), "data": str(run.data.get("source", "")), "measures": measures}
