"""Two models on the same items: the mean of each item's difference, which is known far better than the difference of
two means. Pure: results in, estimates out; task.py documents what records hold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from postrain.evaluation.estimate import Estimate
from postrain.evaluation.task import EvalResult

AGREES = 1e-6
# What is in nats: of other words it is another number.
NATS = ("loss", "perplexity", "per_token", "per_completion", "margin", "margin_per_token")
Shares = Mapping[Any, tuple[float, float]]
"""Of each item that has the metric, by its row: its share and its weight."""


def differences(one: EvalResult, other: EvalResult) -> dict[str, Estimate]:
    """For every metric that both results make of records of the same items: one minus other.

    Nats of other words, or of other tokens, have none.
    """
    found, same = {}, same_inputs(one, other)
    for metric in one.metrics:
        if metric in other.metrics and (same or metric not in NATS):
            mine, theirs = shares(one, metric), shares(other, metric)
            if mine and mine.keys() == theirs.keys():
                found[metric] = paired(mine, theirs)
    return found


def same_inputs(one: EvalResult, other: EvalResult) -> bool:
    """Whether two models were given the same text in as many tokens, as far as a measure tells."""
    mine, theirs = tokens(one), tokens(other)
    return one.example == other.example and all(mine[row] == theirs[row] for row in mine.keys() & theirs.keys())


def tokens(result: EvalResult) -> Mapping[Any, Any]:
    """How many there were to foresee, by row."""
    return {record.get("row"): record.get("weight") for record in result.records if "loss" in record}


def input_mismatch_notes(
    name: str, mine: Mapping[str, EvalResult], other: str, theirs: Mapping[str, EvalResult]
) -> tuple[str, ...]:
    """What to say where measures put other words to one model than to another."""
    both = [measure for measure in mine if measure in theirs and mine[measure].metrics and theirs[measure].metrics]
    unlike = [measure for measure in both if not same_inputs(mine[measure], theirs[measure])]
    if not unlike:
        return ()
    return (
        f"asked in different words: {name} and {other} read other text or other tokens (a chat template or tokenizer "
        f"of their own) in {', '.join(unlike)}; their differences in nats are left out",
    )


def shares(result: EvalResult, metric: str) -> Shares:
    """Each item's share of a metric; none where neither their weighted nor their plain mean is the metric's value, or
    items repeat."""
    items = [record for record in result.records if isinstance(record.get(metric), bool | int | float)]
    weighted = {item.get("row"): (float(item[metric]), float(item.get("weight", 1))) for item in items}
    plain = {row: (share, 1.0) for row, (share, _) in weighted.items()}
    if len(weighted) < len(items):
        return {}
    return next((found for found in (weighted, plain) if means(found, result.metrics[metric].value)), {})


def means(found: Shares, value: float) -> bool:
    """Whether this is the mean of these shares."""
    total = sum(weight for _, weight in found.values())
    if total <= 0:
        return False
    mean = sum(share * weight for share, weight in found.values()) / total
    return math.isclose(mean, value, rel_tol=AGREES, abs_tol=AGREES)


def paired(mine: Shares, theirs: Shares) -> Estimate:
    """The difference of the two weighted means, with an interval over items.

    Of equal weights on both sides it is the mean of the items' differences; otherwise a difference of two ratios.
    """
    rows = list(mine)
    if all(mine[row][1] == theirs[row][1] == 1 for row in rows):
        return Estimate.paired([mine[row][0] for row in rows], [theirs[row][0] for row in rows])
    sums = [[(values[row][0] * values[row][1], values[row][1]) for row in rows] for values in (mine, theirs)]
    totals = [(sum(total for total, _ in side), sum(weight for _, weight in side)) for side in sums]

    def without(row: int) -> float:
        left = [
            (total - side[row][0]) / (weight - side[row][1]) for (total, weight), side in zip(totals, sums, strict=True)
        ]
        return left[0] - left[1]

    value = totals[0][0] / totals[0][1] - totals[1][0] / totals[1][1]
    least = min(weight for _, weight in totals)
    heaviest = max(weight for side in sums for _, weight in side)
    return Estimate.jackknife(value, [without(row) for row in range(len(rows))] if heaviest < least else [value])
