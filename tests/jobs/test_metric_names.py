"""Metrics of a study that no job can measure are refused, those that depend on rows or user code are not."""

from __future__ import annotations

import pytest

from postrain.jobs.metric_names import metric_problems
from postrain.jobs.study import Study

GOLD = {"_target_": "postrain.rewards.world.Gold"}
WEIGHTED = {
    "_target_": "postrain.rewards.base.WeightedSum",
    "parts": {"taste": GOLD, "short": {"_target_": "postrain.rewards.function.Function", "function": "a.b.length"}},
}
QUERIES = {"queries": {"_target_": "postrain.evaluation.queries.Queries"}}


def run(reward=GOLD, tasks=None, **data):
    gold = {"gold": "postrain.world.gold.score"}
    return {
        "method": {},
        "reward": reward,
        "data": {**gold, **data},
        "evaluation": {"tasks": tasks or {}, "greedy": False},
    }


def remedy(name, *stages):
    """What follows "no run measures NAME; "; None if the metric is not refused."""
    lines = [*metric_problems(Study(metric=name), [*stages])]
    return lines[0].partition("; ")[2] if lines else None


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        ("gold/totl2", run(), "did you mean gold/total?"),
        ("gold/totl2", run(gold=None), None),
        ("gold/total", run(gold=None), None),
        ("reward/modd", run(), "did you mean reward/mood?"),
        ("eval/reward/taste/modd", run(WEIGHTED), "did you mean eval/reward/taste/mood?"),
        ("eval/reward/taste/mood", run(WEIGHTED), None),
        ("eval/reward/lenght", run(WEIGHTED["parts"]["short"]), "did you mean eval/reward/length?"),
        ("reward/anything", run({"_target_": "postrain.rewards.rubric.LocalRubric"}), None),
        ("eval/queries/accuracy", run(), "evaluation.tasks has no queries; add it, as in evaluation=queries"),
        ("eval/querys/accuracy", run(), "did you mean eval/queries/accuracy?"),
        ("eval/querys/accuracy", run(mix={"querys": "a.jsonl"}), None),
        ("eval/queries/agrement", run(tasks=QUERIES), "did you mean eval/queries/agreement?"),
        ("eval/kl/exact", run(), None),
        ("eval/greedy/reward/total", run(), "set evaluation.greedy=true"),
        ("environment/plays", run(), None),
    ],
)
def test_metric_is_refused_if_the_run_cannot_measure_it(name, config, expected):
    assert remedy(name, {"": config}) == expected


def test_metric_is_refused_only_if_no_job_measures_it():
    assert remedy("reward/taste", {"": run()}, {"": run(WEIGHTED)}) is None


def test_metric_of_a_pipeline_is_that_of_any_stage_or_of_the_named_one():
    stages = {"generate": {"selection": {}}, "sft": run(), "rated": {"data": {}, "evaluation": {"tasks": QUERIES}}}
    assert remedy("queries/accuracy", stages) is None
    assert remedy("gold/totl", stages) == "did you mean gold/total?"
    assert remedy("sft/gold/totl", stages) == "did you mean sft/gold/total?"
    assert remedy("gold/totl", {**stages, "own": {"call": {}}}) is None
