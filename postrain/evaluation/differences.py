"""Paired differences of two models on the same items, which have narrower intervals than differences of two means.

Pure functions of results; task.py documents the records.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from postrain.evaluation.estimate import Estimate
from postrain.evaluation.task import EvalResult

TOLERANCE = 1e-6
# Metrics in nats depend on the text and the tokenizer; they compare only for equal inputs.
IN_NATS = ("loss", "perplexity", "per_token", "per_completion", "margin", "margin_per_token")
Shares = Mapping[Any, tuple[float, float]]
"""By row: the item's value of the metric, and its weight."""


def differences(one: EvalResult, other: EvalResult) -> dict[str, Estimate]:
    """The paired difference, one minus other, of every metric that both results have on the same items.

    Metrics in nats are left out if the inputs differ in text or tokens.
    """
    found, same = {}, same_inputs(one, other)
    for metric in one.metrics:
        if metric in other.metrics and (same or metric not in IN_NATS):
            mine, theirs = shares(one, metric), shares(other, metric)
            if mine and mine.keys() == theirs.keys():
                found[metric] = paired(mine, theirs)
    return found


def same_inputs(one: EvalResult, other: EvalResult) -> bool:
    """Whether two models had the same input text and number of tokens, as far as the results record it."""
    mine, theirs = tokens(one), tokens(other)
    return one.example == other.example and all(mine[row] == theirs[row] for row in mine.keys() & theirs.keys())


def tokens(result: EvalResult) -> Mapping[Any, Any]:
    """The number of predicted tokens, by row."""
    return {record.get("row"): record.get("weight") for record in result.records if "loss" in record}


def input_mismatch_notes(
    name: str, mine: Mapping[str, EvalResult], other: str, theirs: Mapping[str, EvalResult]
) -> tuple[str, ...]:
    """A note that lists the tasks in which two models had different inputs."""
    both = [task for task in mine if task in theirs and mine[task].metrics and theirs[task].metrics]
    unlike = [task for task in both if not same_inputs(mine[task], theirs[task])]
    if not unlike:
        return ()
    return (
        f"different inputs: {name} and {other} have different chat templates or tokenizers in "
        f"{', '.join(unlike)}; differences in nats are left out",
    )


def shares(result: EvalResult, metric: str) -> Shares:
    """Each item's value of a metric; empty if neither their weighted nor their plain mean is the metric's value, or if
    items repeat."""
    found = [(record, record.get(metric.removeprefix(f"{record.get('part')}/"))) for record in result.records]
    items = [(record, value) for record, value in found if isinstance(value, bool | int | float)]
    weighted = {record.get("row"): (float(value), float(record.get("weight", 1))) for record, value in items}
    plain = {row: (share, 1.0) for row, (share, _) in weighted.items()}
    if len(weighted) < len(items):
        return {}
    return next((found for found in (weighted, plain) if means(found, result.metrics[metric].value)), {})


def means(found: Shares, value: float) -> bool:
    """Whether `value` is the weighted mean."""
    total = sum(weight for _, weight in found.values())
    if total <= 0:
        return False
    mean = sum(share * weight for share, weight in found.values()) / total
    return math.isclose(mean, value, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def paired(mine: Shares, theirs: Shares) -> Estimate:
    """The difference of two weighted means, with an interval over items.

    With equal weights it is the mean of the items' differences; otherwise a difference of two ratios.
    """
    rows = list(mine)
    if all(mine[row][1] == theirs[row][1] == 1 for row in rows):
        return Estimate.paired([mine[row][0] for row in rows], [theirs[row][0] for row in rows])
    one, other = (
        ([found[row][0] * found[row][1] for row in rows], [found[row][1] for row in rows]) for found in (mine, theirs)
    )
    return Estimate.ratio_gap(one, other)
