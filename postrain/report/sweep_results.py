"""Reads the folder of a sweep: settings with their jobs, means over seeds with 95 % intervals, the best setting, and
the untrained model.

Jobs that are running, failed or left damaged files are in the list of jobs and in no mean. Imports neither torch nor
lightning.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from postrain.config import renamed
from postrain.errors import ConfigError
from postrain.jsonl import number, read_json
from postrain.metrics import Direction, comparison_metric, direction_of
from postrain.report.sequential import Sequential, decide, rule_of
from postrain.report.sweep_cells import Cell, JobResult, cells_of, untrained
from postrain.report.values import LARGEST, finite, mapping, read_records, read_yaml
from postrain.runs.status import Status
from postrain.suggestions import suggestion

FILE, JOBS = "sweep.yaml", "jobs.json"
USUAL = ("gold/total", "eval/reward/total", "eval/accuracy", "eval/kl/exact")
"""Columns of a sweep that names no metric."""
KL = "eval/kl/exact"


@dataclass(frozen=True)
class SweepResult:
    """A sweep."""

    path: Path
    name: str
    question: str
    overrides: tuple[str, ...]
    """Of its command line."""
    metric: str | None
    """The deciding metric; None if the jobs have different ones."""
    direction: Direction
    x: str | None
    y: str | None
    """The axes of the plot; None for the metric over the varied key."""
    columns: tuple[str, ...]
    settings: tuple[str, ...]
    """The varied keys."""
    cells: tuple[Cell, ...]
    untrained: tuple[Cell, ...] = field(default=())
    """Update 0 of the same jobs: one row, or several where the settings start from different models."""
    sequential: Sequential | None = None
    """The rule by which seeds were added; None for fixed seeds."""
    missing: tuple[str, ...] = field(default=())
    """A line for each file or metric that could not be read."""

    @property
    def jobs(self) -> tuple[JobResult, ...]:
        """All jobs, in order."""
        return tuple(sorted((job for cell in self.cells for job in cell.jobs), key=lambda job: job.number))

    @property
    def failed(self) -> tuple[JobResult, ...]:
        """The jobs that are not done."""
        return tuple(job for job in self.jobs if job.state != "done")

    @property
    def ranked(self) -> tuple[Cell, ...]:
        """The settings with the deciding metric, the best mean first; those that were beaten and got no further seeds
        follow the others."""
        metric, sign = self.metric, -1 if self.direction == "max" else 1
        if metric is None:
            return ()
        with_metric = [cell for cell in self.cells if metric in cell.values]
        key = {cell.label: (cell.label in self.beaten, sign * cell.values[metric].value) for cell in with_metric}
        return tuple(sorted(with_metric, key=lambda cell: key[cell.label]))

    @cached_property
    def beaten(self) -> Mapping[str, str]:
        """By label of a beaten setting of a sequential sweep, the setting that is certainly better."""
        if self.metric is None or self.sequential is None:
            return {}
        return decide(self.cells, self.metric, self.direction, self.sequential).beaten

    @property
    def best(self) -> Cell | None:
        """The setting with the best mean; None where there is nothing to compare."""
        return self.ranked[0] if len(self.ranked) > 1 else None

    @property
    def quantities(self) -> tuple[str, ...]:
        """The deciding metric and the axes of the plot."""
        return tuple(dict.fromkeys(filter(None, (self.metric, self.y, self.x))))

    def measured_columns(self) -> tuple[str, ...]:
        """The measured metrics of the table: the deciding one, the axes of the plot, further columns."""
        wanted = dict.fromkeys((*self.quantities, *self.columns))
        return tuple(name for name in wanted if any(name in cell.values for cell in self.cells))


def read_sweep(path: Path) -> SweepResult:
    """The sweep in a folder, finished or not. Raises ConfigError where there is none."""
    if not (path / FILE).is_file():
        raise ConfigError(f"{path} is not a sweep: it holds no {FILE}")
    node = renamed.study(read_yaml(path / FILE))
    jobs = [read_job(path, record) for record in read_records(path / JOBS) if "folder" in record]
    missing = [] if node else [f"{FILE} is damaged: the question is not known"]
    missing += [] if jobs else [f"{JOBS} is missing or damaged: the jobs are not known"]
    settings = tuple(dict.fromkeys(key for job in jobs for key in job.settings))
    metric, direction = deciding(node.get("metric"), node.get("direction"), jobs, settings)
    columns = node.get("columns") or ()
    if metric is not None and node.get("metric") != metric:
        columns = [*columns, *USUAL]
    axes = mapping(node.get("plot"))
    known = {name for job in jobs for name in job.values}
    x, y = (name if (name := axes.get(axis)) in known else None for axis in ("x", "y"))
    if x is None and KL in known and varies_kl(settings):
        x, y = KL, y or metric
    cells = tuple(cells_of(jobs))
    wanted = [node.get("metric"), axes.get("x"), axes.get("y"), *(node.get("columns") or ())]
    return SweepResult(
        path=path,
        name=str(node.get("name", path.name)),
        question=str(node.get("question") or ""),
        overrides=tuple(map(str, node.get("words") or ())),
        metric=metric,
        direction=direction,
        x=x,
        y=y,
        columns=tuple(map(str, columns)),
        settings=settings,
        cells=cells,
        untrained=tuple(untrained(cells, metric)) if metric else (),
        sequential=rule_of(node),
        missing=(*missing, *_unmeasured(jobs, wanted, metric), *_diverged(cells)),
    )


def deciding(
    named: str | None, direction: str | None, jobs: Sequence[JobResult], settings: Sequence[str]
) -> tuple[str | None, Direction]:
    """The metric that compares the settings, with its direction.

    The study's metric if a finished job has measured it, else the deciding metric that all finished jobs share: on data
    without gold scores, a study that names the gold score is decided by the held-out reward.
    """
    finished = [job for job in jobs if job.values]
    own: list[tuple[str, Direction]] = [
        (job.metric, "min" if job.direction == "min" else "max") for job in finished if job.metric
    ]
    if named is None or (finished and not any(named in job.values for job in finished)):
        found = comparison_metric(own, [job.values for job in finished], settings) if finished else None
        if found or named is None:
            return found or (None, "max")
    return named, "min" if (direction or dict(own).get(named) or direction_of(named)) == "min" else "max"


def varies_kl(settings: Iterable[str]) -> bool:
    """Whether a varied key is a KL penalty."""
    return any("kl" in last.split("_") or last == "beta" for last in (key.rpartition(".")[2] for key in settings))


def read_job(root: Path, record: Mapping[str, Any]) -> JobResult:
    """The result of a job of the sweep in `root`; `record` is its entry of jobs.json."""
    folder = root / str(record["folder"])
    status, result = Status(folder / "status.json").current(), renamed.result(read_json(folder / "result.json"))
    state = str(status.get("status") or "not started")
    return JobResult(
        number=int(number(record.get("number")) or 0),
        folder=folder,
        label=str(record.get("label", folder.name)),
        settings=mapping(record.get("settings")),
        seed=seed if isinstance(seed := record.get("seed"), int) else None,
        state=state,
        reason=str(status.get("reason") or result.get("stopped") or ""),
        seconds=number(status.get("seconds")) or 0.0,
        metric=result.get("metric"),
        direction=result.get("direction"),
        objective=number(result.get("objective")),
        values=measured(result) if state == "done" else {},
        changes=dict(_changes(result.get("changes"))) if state == "done" else {},
    )


def measured(result: Mapping[str, Any]) -> dict[str, float]:
    """The final metrics of a finished job, from its result.json."""
    found = {name: both[-1] for name, both in mapping(result.get("changes")).items() if both}
    found |= mapping(result.get("values"))
    return {name: known for name, value in found.items() if (known := number(value)) is not None}


def _unmeasured(jobs: Sequence[JobResult], wanted: Sequence[str | None], metric: str | None) -> Iterable[str]:
    """Metrics that the study names and no finished job has measured; the first is the deciding one."""
    known = sorted({name for job in jobs for name in job.values})
    for name in dict.fromkeys(filter(None, wanted)) if known else ():
        if name not in known:
            instead = f"; {metric} decides instead" if name == wanted[0] and metric else ""
            yield f"no finished job has measured {name}{suggestion(name, known)}{instead}"


def _diverged(cells: Sequence[Cell]) -> Iterable[str]:
    for cell in cells:
        done = [job for job in cell.jobs if job.state == "done"]
        for name in dict.fromkeys(name for job in done for name in job.values):
            infinite = sum(name in job.values and not abs(job.values[name]) < LARGEST for job in done)
            if infinite:
                yield f"{cell.label}: {name} is not finite in {infinite} of {len(done)} jobs, so it has no mean"


def _changes(found: Any) -> Iterable[tuple[str, tuple[float, float]]]:
    for name, both in mapping(found).items():
        # nan and infinity have no mean.
        ends = [known for value in both if (known := finite(value)) is not None] if isinstance(both, list) else []
        if len(ends) == 2 == len(both):
            yield name, (ends[0], ends[1])


def numeric_key(study: SweepResult) -> str | None:
    """The varied key with the most values among those with numeric values; None without one."""
    values = {key: [number(cell.settings.get(key)) for cell in study.cells] for key in study.settings}
    numeric = {key: set(known) for key, known in values.items() if None not in known and len(set(known)) > 1}
    return max(numeric, key=lambda key: len(numeric[key])) if numeric else None
