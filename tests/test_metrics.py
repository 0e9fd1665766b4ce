"""Declarations of metrics: bounds and better direction by name, and which metric decides."""

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
        # A part of a reward may be called anything.
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
        # Nobody declared these: the name suggests it, or nothing does.
        ("lm_eval/lambada/word_perplexity", "min"),
        ("my/loss_of_mine", None),
        ("my_loss", "min"),
    ],
)
def test_direction_by_name(name: str, direction: str | None) -> None:
    assert metric(name).direction == direction


def test_the_most_specific_declaration_holds() -> None:
    for name, found in (("eval/kl/exact", "kl/exact"), ("reward/mood", "reward/*"), ("reward/chosen", "reward/chosen"),
                        ("eval/loss", "eval/loss"), ("loss/odds_ratio", "loss/*")):  # fmt: skip
        assert getattr(declared(name), "name", None) == found
    assert declared("my/loss_of_mine") is None


def test_a_metric_cannot_be_declared_twice() -> None:
    with pytest.raises(ValueError, match="grad_norm is declared twice"):
        declare("grad_norm", "something else")


def test_the_listing_names_unit_direction_range_and_meaning() -> None:
    row = "| `kl/exact` | nats/token | min | 0 … inf | KL of the policy to the reference |"
    assert row in listing().splitlines()
    assert all("|  |\n" not in line for line in listing().splitlines())


@pytest.mark.parametrize("target", METHODS)
def test_without_gold_answers_every_method_is_judged_by_a_held_out_metric_of_its_own(target: str) -> None:
    method: Any = load_target(target)
    last = method.headline[2]
    direction = "min" if last in ("eval/perplexity", "eval/loss") else "max"
    assert objective_metric(method, {last: 1.0, "eval/kl/exact": 1.0}) == (last, direction)
    # With gold answers the method's own choice stands.
    name, margin = method.expected_change
    assert objective_metric(method, {last: 1.0, name: 1.0}) == (name, "max" if margin > 0 else "min")
    # With nothing measured too.
    assert objective_metric(method, {}) == (name, "max" if margin > 0 else "min")


def test_other_metrics_judge_in_a_fixed_order() -> None:
    assert deciding_metric([], {"eval/loss", "eval/accuracy", "eval/kl/exact"}) == ("eval/accuracy", "max")
    assert deciding_metric([], {"eval/perplexity", "eval/loss"}) == ("eval/perplexity", "min")
    assert deciding_metric([], {"eval/kl/exact"}) is None
    assert direction_of("eval/kl/exact") == "min"


def largest(name: str) -> tuple[str, Direction]:
    return name, "max"


def test_runs_are_compared_by_a_metric_that_all_have() -> None:
    reward, accuracy, gold = map(largest, ("eval/reward/total", "eval/accuracy", "gold/total"))
    both = {reward[0], "eval/kl/exact"}
    assert comparison_metric([reward, reward], [both, both]) == reward
    # DPO is judged by accuracy, SimPO by gold: gold, where both have it.
    assert comparison_metric([accuracy, gold], [{accuracy[0], gold[0]}, {accuracy[0], gold[0]}]) == gold
    assert comparison_metric([accuracy, reward], [{accuracy[0]}, {reward[0]}]) is None
    # What the settings differ in does not compare them.
    assert comparison_metric([reward, reward], [both, both], ["reward.arguments.weight"]) is None
