"""What came out of each stage, read from its folder: one table for the console and for summary.md, and result.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from postrain.config.schema import load_target
from postrain.formatting import duration, figure, short
from postrain.generation.generate import SUMMARY
from postrain.jobs.pipeline_plan import Step
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
    """What there is to say, by column."""


def result(step: Step, root: Path) -> Result:
    """What a stage that is done has left."""
    folder = RunFolder(root / step.stage.folder)
    cells = READERS[step.stage.kind](step, folder)
    return Result(step.stage.name, duration(float(folder.status.read().get("seconds", 0.0))), cells)


def outcome(steps: Sequence[Step], root: Path) -> dict[str, Any]:
    """result.json of the whole: the last stage's that has a measure of its own, with the changes of all stages.

    Changes stand under `<stage>/<metric>`, those of that last stage under `<metric>` too; {} where no stage has any.
    """
    found = {step.stage.name: read_json(RunFolder(root / step.stage.folder).result) for step in steps}
    judged = [result for result in found.values() if number(result.get("objective")) is not None]
    if not judged:
        return {}
    changes = {f"{stage}/{name}": both for stage, result in found.items() for name, both in _changes(result).items()}
    return {**judged[-1], "changes": changes | _changes(judged[-1])}


def _changes(result: Mapping[str, Any]) -> dict[str, Any]:
    return result.get("changes") or {}


def _trained(step: Step, folder: RunFolder) -> dict[str, str]:
    name = load_target(step.config["method"]["_target_"]).headline[2]  # type: ignore[attr-defined]
    before, after = before_and_after(folder.metrics.read()).get(name, (None, None))
    if before is None or after is None:
        return {}
    return {MADE: f"{short(name).removeprefix('eval ')} {figure(before)} → {figure(after)}"}


def _generated(step: Step, folder: RunFolder) -> dict[str, str]:
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


def _evaluated(step: Step, folder: RunFolder) -> dict[str, str]:
    found = read_json(folder.result)
    metric, (before, after) = found["metric"], found["changes"].get(found["metric"], (None, None))
    if before is None or after is None:
        return {MADE: f"{short(str(metric))} {figure(found['objective'])}"} if found["objective"] is not None else {}
    return {MADE: f"{short(metric)} {figure(before)} → {figure(after)}"}


def _called(step: Step, folder: RunFolder) -> dict[str, str]:
    return {}


READERS = {"train": _trained, "generate": _generated, "evaluate": _evaluated, "call": _called}


def grid(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Column names and rows; columns that nobody fills are left out."""
    said = [column for column in (MADE, GREEDY, SAMPLED, SOLVED) if any(column in r.cells for r in results)]
    rows = [[found.stage, *(found.cells.get(column, "") for column in said), found.time] for found in results]
    return ["stage", *said, "time"], rows


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
