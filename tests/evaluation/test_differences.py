"""Paired differences of two models on the same items."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from postrain.evaluation.differences import differences, input_mismatch_notes
from postrain.evaluation.estimate import Estimate
from postrain.evaluation.task import EvalResult


def result(values: list[float], weights: list[float] | None = None, rows: Any = None) -> EvalResult:
    weights = weights or [1.0] * len(values)
    mean = sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)
    items = zip(rows or range(len(values)), values, weights, strict=True)
    return EvalResult(
        metrics={"loss": Estimate(value=mean, low=0, high=9, n=len(values))},
        records=tuple({"row": row, "loss": value, "weight": weight} for row, value, weight in items),
    )


def test_paired_difference_has_the_interval_of_the_item_differences() -> None:
    # Every item differs by 1, although the items vary: the paired interval has width 0.
    found = differences(result([1.0, 5.0, 9.0]), result([2.0, 6.0, 10.0]))["loss"]
    assert (found.value, found.low, found.high, found.n) == (-1, -1, -1, 3)


def test_unweighted_metric_is_paired_although_items_have_weights() -> None:
    records = tuple(
        {"row": row, "sum": total, "weight": weight} for row, (total, weight) in enumerate([(1, 3), (5, 1)])
    )
    one = EvalResult(metrics={"sum": Estimate(value=3, low=0, high=9, n=2)}, records=records)
    assert differences(one, one)["sum"].n == 2


def test_weighted_items_give_the_difference_of_the_weighted_means() -> None:
    # (1 · 1 + 3 · 5) / 4 = 4 against (1 · 2 + 3 · 8) / 4 = 6.5
    found = differences(result([1.0, 5.0], [1, 3]), result([2.0, 8.0], [1, 3]))["loss"]
    assert found.value == pytest.approx(-2.5)
    assert found.low < -2.5 < found.high


def test_metrics_in_nats_are_not_compared_for_different_inputs() -> None:
    one = result([1.0, 5.0], [1, 3])
    given = replace(one, example="<|user|>Sum?", metrics={**one.metrics, "accuracy": one.metrics["loss"]})
    given = replace(given, records=tuple({**record, "accuracy": record["loss"]} for record in one.records))
    assert set(differences(given, given)) == {"loss", "accuracy"}
    assert set(differences(given, replace(given, example="Sum?"))) == {"accuracy"}
    assert differences(one, result([2.0, 8.0], [1, 4])) == {}
    mine, theirs = {"perplexity": one, "kl": one}, {"perplexity": replace(one, example="Sum?"), "kl": one}
    (line,) = input_mismatch_notes("nano", mine, "other", theirs)
    assert line.startswith("different inputs: nano and other have different chat templates")
    assert "in perplexity;" in line
    assert input_mismatch_notes("nano", mine, "other", mine) == ()


def test_no_difference_for_other_rows_or_records_that_do_not_average_to_the_metric() -> None:
    one = result([1.0, 2.0])
    assert differences(one, result([1.0, 2.0], rows=["a", "b"])) == {}
    inconsistent = EvalResult(metrics={"loss": Estimate(value=7.0, low=0, high=9, n=2)}, records=one.records)
    assert differences(inconsistent, one) == {}
    assert differences(one, EvalResult(metrics={})) == {}
    twice = EvalResult(metrics=one.metrics, records=one.records * 2)
    assert differences(twice, twice) == {}
