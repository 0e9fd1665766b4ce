"""Declarations of metrics: bounds and direction by name, and the choice of the deciding metric."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Any

import pytest
import yaml

from postrain.config.schema import load_target
from postrain.metrics import (
    Direction,
    bounds,
    comparison_metric,
    deciding_metric,
    declare,
    declared,
    direction_of,
    listing,
    metric,
)
from postrain.training.finalize import objective_metric

METHODS = sorted(
    {
        target
        for path in Path(__file__).parents[1].glob("conf/method/*.yaml")
        if (target := (yaml.safe_load(path.read_text()).get("method") or {}).get("_target_"))
    }
)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("gold/mood", (0, 1)),
        ("eval/accuracy", (0, 1)),
        ("eval/step_accuracy", (0, 1)),
        ("eval/win_rate", (0, 1)),
        ("eval/repetition", (0, 1)),
        ("eval/completion/finished", (0, 1)),
        ("eval/completion/distinct", (0, 1)),
        ("eval/reward/unscorable", (0, 1)),
        ("eval/forgetting/fact_accuracy", (0, 1)),
        ("eval/kl/exact", (0, inf)),
        ("eval/kl/per_token", (0, inf)),
        ("eval/completion/length", (0, inf)),
        ("eval/loss", (0, inf)),
        ("eval/forgetting/perplexity", (1, inf)),
        ("eval/reference_logp", (-inf, 0)),
        ("eval/kl/k1", (-inf, inf)),
        ("eval/reward/total", (-inf, inf)),
        # The name of a reward component is arbitrary, so it implies no bounds.
        ("eval/reward/accuracy", (-inf, inf)),
        ("eval/margin", (-inf, inf)),
    ],
)
def test_bounds_by_name(metric: str, expected: tuple[float, float]) -> None:
    assert bounds(metric) == expected


@pytest.mark.parametrize(
    ("name", "direction"),
    [
        ("eval/perplexity", "min"),
        ("eval/forgetting/loss", "min"),
        ("gold/total", "max"),
        ("gold/non_repetition", "max"),
        ("eval/repetition", "min"),
        ("eval/forgetting/fact_accuracy", "max"),
        ("eval/completion/length", None),
        ("learning_rate", None),
        # Undeclared metrics: the direction follows from the last part of the name, or is None.
        ("lm_eval/lambada/word_perplexity", "min"),
        ("my/loss_of_mine", None),
        ("my_loss", "min"),
    ],
)
def test_direction_by_name(name: str, direction: str | None) -> None:
    assert metric(name).direction == direction


def test_most_specific_declaration_applies() -> None:
    for name, found in (("eval/kl/exact", "kl/exact"), ("reward/mood", "reward/*"), ("reward/chosen", "reward/chosen"),
                        ("eval/loss", "eval/loss"), ("loss/odds_ratio", "loss/*")):  # fmt: skip
        assert getattr(declared(name), "name", None) == found
    assert declared("my/loss_of_mine") is None


def test_second_declaration_of_a_metric_is_refused() -> None:
    with pytest.raises(ValueError, match="grad_norm is declared twice"):
        declare("grad_norm", "something else")


def test_listing_names_unit_direction_range_and_meaning() -> None:
    row = "| `kl/exact` | nats/token | min | 0 … inf | KL of the policy to the reference |"
    assert row in listing().splitlines()
    assert all("|  |\n" not in line for line in listing().splitlines())


@pytest.mark.parametrize("target", METHODS)
def test_objective_without_gold_scores_is_a_held_out_metric_of_the_method(target: str) -> None:
    method: Any = load_target(target)
    last = method.headline[2]
    direction = "min" if last in ("eval/perplexity", "eval/loss") else "max"
    assert objective_metric(method, {last: 1.0, "eval/kl/exact": 1.0}) == (last, direction)
    # With gold scores the objective is the metric of `expected_change`.
    name, margin = method.expected_change
    assert objective_metric(method, {last: 1.0, name: 1.0}) == (name, "max" if margin > 0 else "min")
    # Without measurements too.
    assert objective_metric(method, {}) == (name, "max" if margin > 0 else "min")


def test_deciding_metric_follows_a_fixed_order() -> None:
    assert deciding_metric([], {"eval/loss", "eval/accuracy", "eval/kl/exact"}) == ("eval/accuracy", "max")
    assert deciding_metric([], {"eval/perplexity", "eval/loss"}) == ("eval/perplexity", "min")
    assert deciding_metric([], {"eval/kl/exact"}) is None
    assert direction_of("eval/kl/exact") == "min"


def largest(name: str) -> tuple[str, Direction]:
    return name, "max"


def test_runs_are_compared_by_a_metric_that_all_logged() -> None:
    reward, accuracy, gold = map(largest, ("eval/reward/total", "eval/accuracy", "gold/total"))
    both = {reward[0], "eval/kl/exact"}
    assert comparison_metric([reward, reward], [both, both]) == reward
    # The objective of DPO is accuracy, that of SimPO gold: gold is compared where both logged it.
    assert comparison_metric([accuracy, gold], [{accuracy[0], gold[0]}, {accuracy[0], gold[0]}]) == gold
    assert comparison_metric([accuracy, reward], [{accuracy[0]}, {reward[0]}]) is None
    # A reward whose settings differ is not comparable.
    assert comparison_metric([reward, reward], [both, both], ["reward.arguments.weight"]) is None
