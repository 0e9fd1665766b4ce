"""What an evaluation leaves in its folder, as plain data.

evaluation_stats.json   every number of every model, with interval and n, and what to know when reading them
<measure>.jsonl         a line an item, with the model's name as `subject`
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
from postrain.evaluation.measures import Estimate, Finding, Subject
from postrain.jsonl import JsonLines, atomic_write_text, plain
from postrain.metrics import direction_of
from postrain.rewards.base import optional
from postrain.runs.folder import RunFolder, writing

STATS, RESPONSES = "evaluation_stats.json", "sample_responses.json"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A model and what was found of it."""

    name: str
    path: str
    data: str
    """What it was measured on."""
    findings: Mapping[str, Finding]
    """By the measures' names."""
    seconds: Mapping[str, float]
    parameters: int
    failed: tuple[str, ...]
    """Measures that ended in a user's mistake; their findings are its line."""
    responses: tuple[Mapping[str, Any], ...]
    """Some completions, as sample_responses.json keeps them."""


def stats(measured: Sequence[Measured], notes: Sequence[str]) -> dict[str, Any]:
    """evaluation_stats.json."""
    return {
        "subjects": [
            {
                "name": one.name,
                "path": one.path,
                "data": one.data,
                "measures": {name: told(found, one.seconds[name]) for name, found in one.findings.items()},
            }
            for one in measured
        ],
        "differences": [
            {"subject": measured[0].name, "against": other.name, "measure": name, "metric": metric, **asdict(found)}
            for other in measured[1:]
            for name, metric, found in gaps(measured[0], other)
        ],
        "notes": list(notes),
    }


def told(finding: Finding, seconds: float) -> dict[str, Any]:
    """A finding without its records."""
    return {
        "metrics": {name: asdict(found) for name, found in finding.metrics.items()},
        "example": finding.example,
        "curves": {way: [asdict(point) for point in points] for way, points in finding.curves.items()},
        "notes": list(finding.notes),
        "seconds": round(seconds, 3),
    }


def gaps(one: Measured, other: Measured) -> list[tuple[str, str, Estimate]]:
    """Measure, metric and paired difference, wherever there is one."""
    return [
        (name, metric, found)
        for name, mine in one.findings.items()
        if name in other.findings
        for metric, found in differences(mine, other.findings[name]).items()
    ]


def responses(subject: Subject, count: int) -> tuple[Mapping[str, Any], ...]:
    """Completions that measures have asked for, those of the most prompts, sampled ones before greedy ones."""
    if not subject.drawn or not count:
        return ()
    asked = max(subject.drawn, key=lambda key: (key[1] > 0, key[0]))
    rollouts = subject.drawn[asked]
    paid = optional(rollouts.reward_B) if subject.reward else (None,) * len(rollouts)
    gold = [scores.get("total") for scores in gold_scores(rollouts, held_out(subject))]
    known = zip(rollouts.prompts, rollouts.completions, paid, gold, strict=True)
    return tuple(
        {"subject": subject.name, "prompt": prompt, "completion": said}
        | {name: value for name, value in (("reward", reward), ("gold", worth)) if value is not None}
        for prompt, said, reward, worth in list(known)[:count]
    )


def result(measured: Sequence[Measured], metric: str | None) -> dict[str, Any]:
    """result.json; `metric` is measure/metric, or None for the first."""
    numbers = {
        f"{name}/{key}": [one.findings[name].metrics[key].value for one in measured if has(one, name, key)]
        for name, finding in measured[0].findings.items()
        for key in finding.metrics
    }
    chosen = metric or decisive(list(numbers))
    return {
        "metric": chosen,
        "direction": direction_of(chosen or ""),
        "objective": numbers[chosen][0] if chosen in numbers else None,
        "headline": list(numbers)[:3],
        "values": {name: values[0] for name, values in numbers.items()},
        "changes": {name: [values[1], values[0]] for name, values in numbers.items() if len(values) > 1},
        "parameters": measured[0].parameters,
        "trainable": 0,
        "updates": 0,
        "stopped": None,
    }


def decisive(names: Sequence[str]) -> str | None:
    """The number that counts where nobody says which: the first measure's total, or its first one."""
    total = f"{names[0].partition('/')[0]}/total" if names else None
    return total if total in names else next(iter(names), None)


def has(one: Measured, measure: str, metric: str) -> bool:
    """Whether a model has this number."""
    return measure in one.findings and metric in one.findings[measure].metrics


def write_records(folder: RunFolder, one: Measured) -> None:
    """A file for each measure that has records; of several models they follow each other."""
    with writing(folder.path):
        for name, finding in one.findings.items():
            if finding.records:
                JsonLines(folder.path / f"{name}.jsonl").append(
                    *({"subject": one.name, **record} for record in finding.records)
                )


def write_stats(folder: RunFolder, measured: Sequence[Measured], notes: Sequence[str], metric: str | None) -> None:
    """The three files that say it all."""
    said = [response for one in measured for response in one.responses]
    files = {STATS: stats(measured, notes), RESPONSES: said, "result.json": result(measured, metric)}
    with writing(folder.path):
        for name, value in files.items():
            atomic_write_text(folder.path / name, json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n")
