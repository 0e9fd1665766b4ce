"""Reads the folder of an evaluation.

Truncated or damaged files raise no error; each is listed in `missing`. evaluation/result_files.py defines the files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from postrain.config import old_names
from postrain.formatting import figure, short
from postrain.jsonl import JsonLines, Record, read_json, records_of
from postrain.metrics import metric
from postrain.report.charts import DataPoint
from postrain.report.folders import Folder, Generation, common
from postrain.report.samples import Sample
from postrain.report.values import damaged, finite, mapping, read_records, text_of, whole

SHARES = {"greedy": "accuracy, greedy", "sampled": "accuracy, sampled", "solved": "pass@n"}
"""Keys of a generation's summary.json, and their labels."""
TIME = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-(?=[0-9a-f])")
"""The start time in the name of a run."""
CENTRAL = ("total", "accuracy", "win_rate", "perplexity")
"""The central metric of a task: the first of these that it has."""


@dataclass(frozen=True)
class Number:
    """A value, its interval and the number of observations, as far as known."""

    value: float
    low: float | None
    high: float | None
    n: int | None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    @property
    def interval_text(self) -> str:
        """The interval as text, or that it is unknown."""
        if self.low is None or self.high is None:
            return "no interval: not saved"
        return f"{figure(self.low)} … {figure(self.high)}"

    @property
    def point(self) -> DataPoint:
        """As a bar."""
        return DataPoint(self.value, 0, self.interval)


@dataclass(frozen=True)
class Point:
    """A point of a test-time scaling curve."""

    label: str
    tokens: float | None
    seconds: float | None
    kl: float | None
    score: Number


@dataclass(frozen=True)
class EvalTask:
    """The results of one task for one model."""

    metrics: Mapping[str, Number]
    example: str
    curves: Mapping[str, tuple[Point, ...]]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class EvalModel:
    """An evaluated model."""

    name: str
    path: str
    data: str
    tasks: Mapping[str, EvalTask]
    samples: tuple[Sample, ...]
    records: Mapping[str, tuple[Record, ...]]
    """By task."""

    def values(self, task: str, key: str) -> list[float]:
        """The finite numbers under a key of a task's records."""
        found = (finite(record.get(key)) for record in self.records.get(task, ()))
        return [value for value in found if value is not None]


@dataclass(frozen=True, kw_only=True)
class Evaluation(Folder):
    """An evaluation."""

    models: tuple[EvalModel, ...]
    differences: Mapping[tuple[str, str], Mapping[str, Number]]
    """First model minus another on the same items: by task and metric, then by the other's name."""
    notes: tuple[str, ...]


def read_evaluation(path: Path) -> Evaluation:
    """The evaluation in a folder, finished or not."""
    found = read_json(path / "evaluation_stats.json")
    missing = [] if found else ["evaluation_stats.json is missing or damaged: there are no metrics"]
    models = records_of(_either(found, "models", "subjects"))
    records: dict[str, list[Record]] = {}
    for name in dict.fromkeys(name for one in models for name in mapping(_either(one, "tasks", "measures"))):
        records[name], lines = JsonLines(path / f"{Path(name).name}.jsonl").examine()
        missing += damaged(f"{name}.jsonl", lines)
    responses = read_records(path / "sample_responses.json")
    return Evaluation(
        **common(path),
        models=tuple(_model(one, records, responses) for one in models),
        differences=_differences(found.get("differences")),
        notes=_texts(found.get("notes")),
        missing=missing,
    )


def shares(found: Generation) -> dict[str, Number]:
    """The accuracies of a generation: greedy, sampled, pass@n."""
    n = whole(found.summary.get("prompts"), 0) or None
    known = {label: as_number(found.summary.get(name)) for name, label in SHARES.items()}
    return {name: replace(one, n=n) for name, one in known.items() if one is not None}


def as_number(found: Any) -> Number | None:
    """A value with its interval; None if the value is not finite."""
    known = mapping(found)
    value, n = finite(known.get("value")), finite(known.get("n"))
    if value is None:
        return None
    return Number(value, finite(known.get("low")), finite(known.get("high")), None if n is None else int(n))


def _model(found: Record, records: Mapping[str, Sequence[Record]], responses: Iterable[Record]) -> EvalModel:
    name = str(found.get("name", "model"))
    own = {_present(task): tuple(one for one in lines if _of(one, name)) for task, lines in records.items()}
    samples = [sample for one in responses if _of(one, name) and (sample := _sample(one)) is not None]
    return EvalModel(
        name=name,
        path=str(found.get("path", "")),
        data=str(found.get("data", "")),
        tasks={
            _present(task): _task(mapping(one)) for task, one in mapping(_either(found, "tasks", "measures")).items()
        },
        samples=tuple(samples),
        records=own,
    )


def _either(record: Record, key: str, old: str) -> Any:
    """The value of a key; files of earlier versions have it under `old`."""
    return record.get(key, record.get(old))


def _present(task: str) -> str:
    """The present name of a task."""
    return old_names.OPTIONS.get(("evaluation", task), task)


def _of(record: Record, name: str) -> bool:
    return record.get("model", record.get("subject", name)) == name


def _task(found: Record) -> EvalTask:
    curves = {way: tuple(_points(points)) for way, points in mapping(found.get("curves")).items()}
    return EvalTask(
        metrics=_numbers(mapping(found.get("metrics")).items()),
        example=text_of(found.get("example")),
        curves={way: points for way, points in curves.items() if points},
        notes=_texts(found.get("notes")),
    )


def _points(found: Any) -> Iterable[Point]:
    for one in records_of(found):
        if (score := as_number(one.get("score"))) is not None:
            tokens, seconds, kl = (finite(one.get(name)) for name in ("tokens", "seconds", "kl"))
            yield Point(str(one.get("label", "")), tokens, seconds, kl, score)


def _numbers(found: Iterable[tuple[str, Any]]) -> dict[str, Number]:
    return {name: known for name, one in found if (known := as_number(one)) is not None}


def _differences(found: Any) -> dict[tuple[str, str], dict[str, Number]]:
    made: dict[tuple[str, str], dict[str, Number]] = {}
    for one in records_of(found):
        key = _present(str(_either(one, "task", "measure"))), str(one.get("metric"))
        made.setdefault(key, {}).update(_numbers([(str(one.get("against")), one)]))
    return made


def _sample(found: Record) -> Sample | None:
    prompt, completion = found.get("prompt"), found.get("completion")
    if not isinstance(prompt, str) or not isinstance(completion, str):
        return None
    scores = {f"{name}/total": value for name in ("reward", "gold") if (value := finite(found.get(name))) is not None}
    return Sample(0, -1, prompt, completion, scores)


def _texts(found: Any) -> tuple[str, ...]:
    return tuple(map(str, found)) if isinstance(found, list) else ()


def findings(models: Sequence[EvalModel], differences: Mapping[tuple[str, str], Mapping[str, Number]]) -> list[str]:
    """The central metric of each task in a sentence: the paired differences of the first model, else its value."""
    found = []
    for task, one in models[0].tasks.items() if models else ():
        if not one.metrics:
            continue
        name = central(one.metrics)
        label, value = short(f"{task} {name}"), one.metrics[name]
        gaps = differences.get((task, name), {})
        for other, gap in gaps.items():
            verb = _compared(f"{task}/{name}", gap)
            found.append(f"{label}: {models[0].name} {verb} {TIME.sub('', other)}, difference {_stated(gap)}.")
        if not gaps:
            found.append(f"{label}: {models[0].name} has {_stated(value)}.")
    return found


def _compared(name: str, gap: Number) -> str:
    if gap.low is None or gap.high is None or gap.low <= 0 <= gap.high:
        return "is not clearly different from"
    direction = metric(name).direction
    if direction is None:
        return "is above" if gap.value > 0 else "is below"
    return "is better than" if (gap.value > 0) == (direction == "max") else "is worse than"


def _stated(found: Number) -> str:
    around = (
        "" if found.low is None or found.high is None else f", 95 % interval {figure(found.low)} … {figure(found.high)}"
    )
    return f"{figure(found.value)}{around}" + (f", n={found.n}" if found.n else "")


def central(metrics: Mapping[str, Number]) -> str:
    """The central metric of a task, else its first one."""
    return next((name for name in CENTRAL if name in metrics), next(iter(metrics)))
