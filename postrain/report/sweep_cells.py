"""The rows of a sweep: the jobs of a setting with all seeds, their means with 95 % intervals, and the untrained model.

Pure: jobs in, rows out; study.py reads the jobs from the folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isclose, isfinite, nan
from pathlib import Path
from statistics import fmean
from typing import Any

from postrain.data.repetition import collapsed
from postrain.evaluation.estimate import Interval, mean_interval
from postrain.metrics import bounds
from postrain.report.values import LARGEST

AGREES = 1e-4
"""Relative difference up to which two measurements of the untrained model count as equal."""

TIMED_OUT = "timed out"
"""The beginning of the reason of a job that exceeded its time limit."""


@dataclass(frozen=True)
class JobResult:
    """The result of a job of a sweep, from its folder."""

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
    """The deciding metric of its method."""
    direction: str | None
    objective: float | None
    """The value of that metric."""
    values: Mapping[str, float]
    """Its final metrics; {} unless it is done. May hold nan and infinities."""
    changes: Mapping[str, tuple[float, float]]
    """Metrics before and after training, where both are finite."""

    @property
    def timed_out(self) -> bool:
        """Whether it exceeded its time limit."""
        return self.state == "failed" and self.reason.startswith(TIMED_OUT)

    @property
    def collapse(self) -> str:
        """How its completions collapsed; empty if they did not."""
        return collapsed(*({name: both[end] for name, both in self.changes.items()} for end in (0, 1)))


@dataclass(frozen=True)
class Cell:
    """A setting: its jobs with all seeds."""

    settings: Mapping[str, Any]
    label: str
    jobs: tuple[JobResult, ...]
    values: Mapping[str, Interval]
    """Means of the metrics that are finite in all finished jobs."""
    n: int
    """The number of finished jobs."""

    @property
    def seconds(self) -> float:
        """Mean time of a finished job."""
        took = [job.seconds for job in self.jobs if job.state == "done"]
        return fmean(took) if took else 0.0

    @property
    def collapsed(self) -> tuple[JobResult, ...]:
        """The finished jobs with collapsed completions."""
        return tuple(job for job in self.jobs if job.collapse)


def cells_of(jobs: Sequence[JobResult]) -> Iterable[Cell]:
    """The settings, in the order of their first jobs."""
    together: dict[str, list[JobResult]] = {}
    for job in jobs:
        together.setdefault(json.dumps(job.settings, sort_keys=True, default=str), []).append(job)
    for group in together.values():
        done = [job for job in group if job.state == "done"]
        known: dict[tuple[str, int | None], float] = {
            (name, job.number): value for job in done for name, value in job.values.items()
        }
        label = f" {group[0].label}".removesuffix(f" seed={group[0].seed}").strip() or "all seeds"
        yield Cell(group[0].settings, label, tuple(group), _means(known), len(done))


def untrained(cells: Sequence[Cell], metric: str) -> Iterable[Cell]:
    """The metrics before the first update: one row for all settings with the same untrained model.

    Settings have the same untrained model if the deciding metric is equal for equal seeds. The row has the other
    metrics that are equal too (the loss at update 0 depends on the method).
    """
    groups: list[list[Cell]] = []
    for cell in cells:
        if metric in {name for name, _ in before(cell)}:
            alike = (group for group in groups if all(metric not in differing_metrics(cell, other) for other in group))
            group = next(alike, None)
            if group is None:
                groups.append([cell])
            else:
                group.append(cell)
    for group in groups:
        different = set().union(*(differing_metrics(group[0], other) for other in group))
        known = {key: value for cell in group for key, value in before(cell).items() if key[0] not in different}
        label = "untrained" if len(groups) == 1 else f"untrained {', '.join(cell.label for cell in group)}"
        yield Cell({}, label, (), _means(known), sum(name == metric for name, _ in known))


def values_of(cell: Cell, metric: str) -> dict[int | None, float]:
    """A metric by seed, where it is finite."""
    return {job.seed: job.values[metric] for job in cell.jobs if isfinite(job.values.get(metric, nan))}


def before(cell: Cell) -> dict[tuple[str, int | None], float]:
    """The metrics of a setting's finished jobs at update 0, by metric and seed."""
    return {(name, job.seed): both[0] for job in cell.jobs for name, both in job.changes.items()}


def differing_metrics(one: Cell, other: Cell) -> set[str]:
    """The metrics in which two settings differed before training, for equal seeds."""
    mine, theirs = before(one), before(other)
    return {key[0] for key in mine.keys() & theirs.keys() if not isclose(mine[key], theirs[key], rel_tol=AGREES)}


def _means(known: Mapping[tuple[str, int | None], float]) -> dict[str, Interval]:
    """Mean of each metric over jobs or seeds, without metrics that are not finite in some job."""
    found: dict[str, list[float]] = {}
    for (name, _), value in known.items():
        found.setdefault(name, []).append(value)
    return {
        name: mean_interval(values, *bounds(name))
        for name, values in found.items()
        if all(abs(value) < LARGEST for value in values)
    }
