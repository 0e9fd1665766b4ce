"""A sweep's folder as it is read: settings with their jobs, means over seeds with 95 % intervals, the best one.

Reads what is there: jobs that run, failed or left half-written files are in the list of jobs and in no mean. Imports
neither torch nor lightning.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import yaml

from postrain.errors import ConfigError
from postrain.evaluation.intervals import Interval, mean_interval
from postrain.jsonl import number, read_json
from postrain.readable import less_is_better
from postrain.report.run_data import LARGEST

FILE, JOBS = "sweep.yaml", "jobs.json"
USUAL = ("gold/total", "eval/reward/total", "eval/accuracy", "eval/kl/exact")
"""Columns of a sweep that names no metric."""


@dataclass(frozen=True)
class Job:
    """One run of the sweep."""

    number: int
    folder: Path
    label: str
    settings: Mapping[str, Any]
    seed: int | None
    state: str
    """done, failed, interrupted, running, or "not started"."""
    reason: str
    """Why it failed, or why it ended before its last update."""
    seconds: float
    metric: str | None
    """What its own method is judged by."""
    direction: str | None
    values: Mapping[str, float]
    """What it measured at its end; {} unless it is done. May hold nan and infinities."""
    changes: Mapping[str, tuple[float, float]]
    """The same before and after, where it measured both and both are numbers."""


@dataclass(frozen=True)
class Cell:
    """A setting: its jobs with all seeds."""

    settings: Mapping[str, Any]
    label: str
    jobs: tuple[Job, ...]
    values: Mapping[str, Interval]
    """Every metric of its finished jobs that is a number in all of them: the rest of a diverged setting is no mean."""
    n: int
    """Finished jobs."""

    @property
    def seconds(self) -> float:
        """Of a finished job, mean."""
        took = [job.seconds for job in self.jobs if job.state == "done"]
        return fmean(took) if took else 0.0


@dataclass(frozen=True)
class Study:
    """A sweep."""

    path: Path
    name: str
    question: str
    words: tuple[str, ...]
    """Its command line."""
    metric: str | None
    """What decides; None where the jobs are judged by different ones."""
    direction: Literal["max", "min"]
    x: str | None
    y: str | None
    """The axes of the picture; None for the metric over what varies."""
    columns: tuple[str, ...]
    settings: tuple[str, ...]
    """The keys that vary."""
    cells: tuple[Cell, ...]
    missing: tuple[str, ...] = field(default=())
    """What could not be read, a line each."""

    @property
    def jobs(self) -> tuple[Job, ...]:
        """All of them, in order."""
        return tuple(sorted((job for cell in self.cells for job in cell.jobs), key=lambda job: job.number))

    @property
    def failed(self) -> tuple[Job, ...]:
        """Those that are not done."""
        return tuple(job for job in self.jobs if job.state != "done")

    @property
    def best(self) -> Cell | None:
        """The setting with the best mean; None where there is nothing to compare."""
        judged = [cell for cell in self.cells if self.metric in cell.values]
        if len(judged) < 2 or self.metric is None:
            return None
        choose = max if self.direction == "max" else min
        return choose(judged, key=lambda cell: cell.values[str(self.metric)].value)

    def shown(self) -> tuple[str, ...]:
        """The metrics of the table: what decides, the picture's axes, the further ones; those that were measured."""
        wanted = dict.fromkeys(filter(None, (self.metric, self.y, self.x, *self.columns)))
        return tuple(name for name in wanted if any(name in cell.values for cell in self.cells))


def read_study(path: Path) -> Study:
    """The sweep in a folder, finished or not. Raises ConfigError where there is none."""
    node, missing = _yaml(path / FILE)
    records, more = _records(path / JOBS)
    jobs = [_job(path, record) for record in records]
    own = {(job.metric, job.direction) for job in jobs if job.metric}
    metric, direction = node.get("metric"), node.get("direction")
    if metric is None and len(own) == 1:
        metric, direction = next(iter(own))
    else:
        direction = direction or next((job.direction for job in jobs if job.metric == metric and job.direction), None)
        direction = direction or ("min" if metric and less_is_better(metric) else "max")
    columns = node.get("columns") or ()
    if metric is not None and node.get("metric") is None:
        columns = [*columns, *USUAL]
    picture = node.get("picture")
    axes = picture if isinstance(picture, dict) else {}
    cells = tuple(_cells(jobs))
    wanted = [metric, axes.get("x"), axes.get("y"), *(node.get("columns") or ())]
    return Study(
        path=path,
        name=str(node.get("name", path.name)),
        question=str(node.get("question") or ""),
        words=tuple(map(str, node.get("words") or ())),
        metric=metric,
        direction="min" if direction == "min" else "max",
        x=axes.get("x"),
        y=axes.get("y"),
        columns=tuple(map(str, columns)),
        settings=tuple(dict.fromkeys(key for job in jobs for key in job.settings)),
        cells=cells,
        missing=(*missing, *more, *_unmeasured(jobs, wanted), *_diverged(cells)),
    )


def _yaml(path: Path) -> tuple[Mapping[str, Any], list[str]]:
    try:
        node = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path.parent} is no sweep: {path.name}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        node = None
    return (node, []) if isinstance(node, dict) else ({}, [f"{path.name} is damaged: the question is not known"])


def _records(path: Path) -> tuple[list[Mapping[str, Any]], list[str]]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return [], [f"{path.name} is missing or damaged: the jobs are not known"]
    records = [each for each in found if isinstance(each, dict) and "folder" in each] if isinstance(found, list) else []
    return [*records], [] if records else [f"{path.name} holds no jobs"]


def _job(root: Path, record: Mapping[str, Any]) -> Job:
    folder = root / str(record["folder"])
    status, result = read_json(folder / "status.json"), read_json(folder / "result.json")
    state = str(status.get("status") or "not started")
    settings = record.get("settings")
    return Job(
        number=int(number(record.get("number")) or 0),
        folder=folder,
        label=str(record.get("label", folder.name)),
        settings=settings if isinstance(settings, dict) else {},
        seed=record.get("seed"),
        state=state,
        reason=str(status.get("reason") or result.get("stopped") or ""),
        seconds=number(status.get("seconds")) or 0.0,
        metric=result.get("metric"),
        direction=result.get("direction"),
        values=measured(result) if state == "done" else {},
        changes=dict(_changes(result.get("changes"))) if state == "done" else {},
    )


def measured(result: Mapping[str, Any]) -> dict[str, float]:
    """The numbers a finished job has ended with, by its result.json."""
    changes, values = result.get("changes"), result.get("values")
    found = {name: both[-1] for name, both in changes.items() if both} if isinstance(changes, dict) else {}
    found |= values if isinstance(values, dict) else {}
    return {name: known for name, value in found.items() if (known := number(value)) is not None}


def _unmeasured(jobs: Sequence[Job], wanted: Iterable[str | None]) -> Iterable[str]:
    """Metrics that the study names and no finished job has: misspelt, or of another kind of run."""
    known = sorted({name for job in jobs for name in job.values})
    for name in dict.fromkeys(filter(None, wanted)) if known else ():
        if name not in known:
            near = get_close_matches(name, known, n=1)
            yield f"no finished job has measured {name}" + (f"; did you mean {near[0]}?" if near else "")


def _diverged(cells: Sequence[Cell]) -> Iterable[str]:
    for cell in cells:
        done = [job for job in cell.jobs if job.state == "done"]
        for name in dict.fromkeys(name for job in done for name in job.values):
            lost = sum(name in job.values and not abs(job.values[name]) < LARGEST for job in done)
            if lost:
                yield f"{cell.label}: {name} is no finite number in {lost} of {len(done)} jobs, so it has no mean"


def _changes(found: Any) -> Iterable[tuple[str, tuple[float, float]]]:
    for name, both in found.items() if isinstance(found, dict) else ():
        ends = [number(value) for value in both] if isinstance(both, list) else []
        # Of nan or infinity there is no mean.
        known = [value for value in ends if value is not None and abs(value) < LARGEST]
        if len(known) == len(ends) == 2:
            yield name, (known[0], known[1])


def _cells(jobs: Sequence[Job]) -> Iterable[Cell]:
    together: dict[str, list[Job]] = {}
    for job in jobs:
        together.setdefault(json.dumps(job.settings, sort_keys=True, default=str), []).append(job)
    for group in together.values():
        done = [job for job in group if job.state == "done"]
        names = dict.fromkeys(name for job in done for name in job.values)
        known = {name: [job.values[name] for job in done if name in job.values] for name in names}
        values = {
            name: mean_interval(found) for name, found in known.items() if all(abs(value) < LARGEST for value in found)
        }
        label = group[0].label.removesuffix(f" seed={group[0].seed}")
        yield Cell(group[0].settings, label, tuple(group), values, len(done))
