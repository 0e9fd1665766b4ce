"""The files of an evaluation.

evaluation_stats.json   every metric of every model, with interval and n, and notes
<task>.jsonl            a line per item, with the model's name as `model`
sample_responses.json   completions of each model, with reward and gold score
result.json             the one number that sweeps compare
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from postrain.evaluation.completions import gold_scores, held_out
from postrain.evaluation.differences import differences
from postrain.evaluation.estimate import Estimate
from postrain.evaluation.task import EvalModel, EvalResult
from postrain.jsonl import JsonLines, atomic_write_text, plain
from postrain.metrics import direction_of
from postrain.rewards.base import nan_to_none
from postrain.runs.folder import RunFolder, writing

STATS, RESPONSES = "evaluation_stats.json", "sample_responses.json"


@dataclass(frozen=True, kw_only=True)
class ModelResults:
    """A model and its results."""

    name: str
    path: str
    data: str
    """The source of the held-out rows."""
    results: Mapping[str, EvalResult]
    """By task."""
    seconds: Mapping[str, float]
    parameters: int
    failed: tuple[str, ...]
    """Tasks that failed with a user's mistake; the note of their result is the message."""
    responses: tuple[Mapping[str, Any], ...]
    """Completions in the format of sample_responses.json."""


def stats(measured: Sequence[ModelResults], notes: Sequence[str]) -> dict[str, Any]:
    """The content of evaluation_stats.json."""
    return {
        "models": [
            {
                "name": one.name,
                "path": one.path,
                "data": one.data,
                "tasks": {name: entry(found, one.seconds[name]) for name, found in one.results.items()},
            }
            for one in measured
        ],
        "differences": [
            {"model": measured[0].name, "against": other.name, "task": name, "metric": metric, **asdict(found)}
            for other in measured[1:]
            for name, metric, found in paired_differences(measured[0], other)
        ],
        "notes": list(notes),
    }


def entry(result: EvalResult, seconds: float) -> dict[str, Any]:
    """A result without its records."""
    return {
        "metrics": {name: asdict(found) for name, found in result.metrics.items()},
        "example": result.example,
        "curves": {name: [asdict(point) for point in points] for name, points in result.curves.items()},
        "notes": list(result.notes),
        "seconds": round(seconds, 3),
    }


def paired_differences(one: ModelResults, other: ModelResults) -> list[tuple[str, str, Estimate]]:
    """Task, metric and paired difference, for all that are known."""
    return [
        (name, metric, found)
        for name, mine in one.results.items()
        if name in other.results
        for metric, found in differences(mine, other.results[name]).items()
    ]


def responses(eval_model: EvalModel, count: int) -> tuple[Mapping[str, Any], ...]:
    """Completions of the task with the most prompts, sampled rather than greedy ones."""
    if not eval_model.rollout_cache or not count:
        return ()
    most = max(eval_model.rollout_cache, key=lambda key: (key[1] > 0, key[0]))
    rollouts = eval_model.rollout_cache[most]
    rewards = nan_to_none(rollouts.reward_B) if eval_model.reward else (None,) * len(rollouts)
    gold = [scores.get("total") for scores in gold_scores(rollouts, held_out(eval_model))]
    known = zip(rollouts.prompts, rollouts.completions, rewards, gold, strict=True)
    return tuple(
        {"model": eval_model.name, "prompt": prompt, "completion": completion}
        | {name: value for name, value in (("reward", reward), ("gold", score)) if value is not None}
        for prompt, completion, reward, score in list(known)[:count]
    )


def result(measured: Sequence[ModelResults], metric: str | None) -> dict[str, Any]:
    """The content of result.json; `metric` is TASK/METRIC, or None for the default."""
    first, *others = [
        {f"{name}/{key}": found.value for name, each in one.results.items() for key, found in each.metrics.items()}
        for one in measured[:2]
    ]
    chosen = metric or default_metric(list(first))
    return {
        "metric": chosen,
        "direction": direction_of(chosen or ""),
        "objective": first.get(chosen or ""),
        "headline": list(first)[:3],
        "values": first,
        "changes": {name: [other[name], value] for other in others for name, value in first.items() if name in other},
        "parameters": measured[0].parameters,
        "trainable": 0,
        "updates": 0,
        "stopped": None,
    }


def default_metric(names: Sequence[str]) -> str | None:
    """The default metric: the total of the first task, or its first metric."""
    total = f"{names[0].partition('/')[0]}/total" if names else None
    return total if total in names else next(iter(names), None)


def has(one: ModelResults, task: str, metric: str) -> bool:
    """Whether a model has this metric."""
    return task in one.results and metric in one.results[task].metrics


def write_records(folder: RunFolder, one: ModelResults) -> None:
    """Appends the records of each task to its file; several models share a file."""
    with writing(folder.path):
        for name, result in one.results.items():
            if result.records:
                JsonLines(folder.path / f"{name}.jsonl").append(
                    *({"model": one.name, **record} for record in result.records)
                )


def write_stats(folder: RunFolder, measured: Sequence[ModelResults], notes: Sequence[str], metric: str | None) -> None:
    """Writes the three JSON files."""
    kept = [response for one in measured for response in one.responses]
    files = {STATS: stats(measured, notes), RESPONSES: kept, "result.json": result(measured, metric)}
    with writing(folder.path):
        for name, value in files.items():
            atomic_write_text(folder.path / name, json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n")
