"""What each stage of a pipeline has measured: a table for the console and summary.md, and result.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from postrain.config.schema import load_target
from postrain.formatting import duration, figure, short
from postrain.generation.generate import SUMMARY
from postrain.jobs.graph import Job
from postrain.jsonl import number, read_json
from postrain.runs.folder import RunFolder
from postrain.training.finalize import before_and_after

MADE, GREEDY, SAMPLED, SOLVED = "held-out, or kept", "right, greedy", "right, sampled", "pass@n"


@dataclass(frozen=True)
class Result:
    """One row."""

    stage: str
    time: str
    cells: Mapping[str, str]
    """Texts by column."""


def result(job: Job, root: Path) -> Result:
    """The results of a stage that is done."""
    folder = RunFolder(root / job.folder)
    cells = READERS[job.kind](job, folder)
    return Result(job.name, duration(float(folder.status.read().get("seconds", 0.0))), cells)


def outcome(jobs: Sequence[Job], root: Path) -> dict[str, Any]:
    """result.json of the whole: the last stage's that has a measure of its own, with the changes of all stages.

    Changes stand under `<stage>/<metric>`, those of that last stage under `<metric>` too; {} where no stage has any.
    """
    found = {job.name: read_json(RunFolder(root / job.folder).result) for job in jobs}
    judged = [result for result in found.values() if number(result.get("objective")) is not None]
    if not judged:
        return {}
    changes = {f"{stage}/{name}": both for stage, result in found.items() for name, both in _changes(result).items()}
    return {**judged[-1], "changes": changes | _changes(judged[-1])}


def _changes(result: Mapping[str, Any]) -> dict[str, Any]:
    return result.get("changes") or {}


def _trained(job: Job, folder: RunFolder) -> dict[str, str]:
    name = load_target(job.config["method"]["_target_"]).headline[2]  # type: ignore[attr-defined]
    before, after = before_and_after(folder.metrics.read()).get(name, (None, None))
    if before is None or after is None:
        return {}
    return {MADE: f"{short(name).removeprefix('eval ')} {figure(before)} → {figure(after)}"}


def _generated(job: Job, folder: RunFolder) -> dict[str, str]:
    found = read_json(folder.path / SUMMARY)
    columns = {GREEDY: "greedy", SAMPLED: "sampled", SOLVED: "solved"}
    cells = {column: _interval(found[name]) for column, name in columns.items() if found.get(name)}
    if SOLVED in cells:
        cells[SOLVED] += f" (n={found['samples']})"
    if found.get("kept"):
        cells[MADE] = f"{found['kept']} of {found['prompts'] * found['samples']} kept"
    return cells


def _interval(found: Mapping[str, Any]) -> str:
    """A number with its 95 % interval, which is not symmetric near 0 and 1."""
    return f"{found['value']:.3f} [{found['low']:.2f}, {found['high']:.2f}]"


def _evaluated(job: Job, folder: RunFolder) -> dict[str, str]:
    found = read_json(folder.result)
    metric, (before, after) = found["metric"], found["changes"].get(found["metric"], (None, None))
    if before is None or after is None:
        return {MADE: f"{short(str(metric))} {figure(found['objective'])}"} if found["objective"] is not None else {}
    return {MADE: f"{short(metric)} {figure(before)} → {figure(after)}"}


def _called(job: Job, folder: RunFolder) -> dict[str, str]:
    return {}


READERS = {"train": _trained, "generate": _generated, "evaluate": _evaluated, "call": _called}


def grid(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Column names and rows; columns that nobody fills are left out."""
    filled = [column for column in (MADE, GREEDY, SAMPLED, SOLVED) if any(column in r.cells for r in results)]
    rows = [[found.stage, *(found.cells.get(column, "") for column in filled), found.time] for found in results]
    return ["stage", *filled, "time"], rows


def table(results: Sequence[Result], name: str) -> Table:
    """For the console."""
    columns, rows = grid(results)
    made = Table(box=None, pad_edge=False, title=f"pipeline {name}", title_justify="left", title_style="bold")
    for column in columns:
        made.add_column(column)
    for row in rows:
        made.add_row(*row)
    return made


def summary(results: Sequence[Result]) -> str:
    """The same as Markdown."""
    columns, rows = grid(results)
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
