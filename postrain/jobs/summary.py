"""The results of a pipeline, read from the folders of its stages: a table, and result.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from postrain.formatting import duration, figure, short
from postrain.generation.generate import SUMMARY
from postrain.jobs.graph import Job
from postrain.jsonl import number, read_json
from postrain.runs.folder import RunFolder

MADE, GREEDY, SAMPLED, SOLVED = "held-out, or selected", "accuracy, greedy", "accuracy, sampled", "pass@n"


def grid(jobs: Sequence[Job], root: Path) -> tuple[list[str], list[list[str]]]:
    """Column names, and a row for each stage; empty columns are left out."""
    folders = [RunFolder(root / job.folder) for job in jobs]
    times = [duration(float(folder.status.read().get("seconds", 0.0))) for folder in folders]
    found = [READERS[job.kind](folder) for job, folder in zip(jobs, folders, strict=True)]
    filled = [column for column in (MADE, GREEDY, SAMPLED, SOLVED) if any(column in cells for cells in found)]
    rows = [
        [job.label, *(cells.get(column, "") for column in filled), time]
        for job, cells, time in zip(jobs, found, times, strict=True)
    ]
    return ["stage", *filled, "time"], rows


def outcome(jobs: Sequence[Job], root: Path) -> dict[str, Any]:
    """The content of result.json: that of the last stage with an objective, and the changes of all stages.

    Changes are named `<stage>/<metric>`, those of that last stage also `<metric>`; {} if no stage has an objective.
    """
    found = {job.label: read_json(RunFolder(root / job.folder).result) for job in jobs}
    judged = [result for result in found.values() if number(result.get("objective")) is not None]
    if not judged:
        return {}
    changes = {f"{stage}/{name}": both for stage, result in found.items() for name, both in _changes(result).items()}
    return {**judged[-1], "changes": changes | _changes(judged[-1])}


def _changes(result: Mapping[str, Any]) -> dict[str, Any]:
    return result.get("changes") or {}


def _trained(folder: RunFolder) -> dict[str, str]:
    """The last headline metric, before → after."""
    found = read_json(folder.result)
    return _cells(found["headline"][2], _changes(found).get(found["headline"][2]) or ())


def _evaluated(folder: RunFolder) -> dict[str, str]:
    """The deciding metric, before → after if the initial model was evaluated too."""
    found = read_json(folder.result)
    return _cells(str(found["metric"]), _changes(found).get(found["metric"]) or [found["objective"]])


def _cells(name: str, values: Sequence[object]) -> dict[str, str]:
    ends = [figure(known) for value in values if (known := number(value)) is not None]
    return {MADE: f"{short(name).removeprefix('eval ')} {' → '.join(ends)}"} if ends else {}


def _generated(folder: RunFolder) -> dict[str, str]:
    found = read_json(folder.path / SUMMARY)
    columns = {GREEDY: "greedy", SAMPLED: "sampled", SOLVED: "solved"}
    cells = {column: _interval(found[name]) for column, name in columns.items() if found.get(name)}
    if SOLVED in cells:
        cells[SOLVED] += f" (n={found['samples']})"
    if found.get("kept"):
        cells[MADE] = f"{found['kept']} of {found['prompts'] * found['samples']} selected"
    return cells


def _interval(found: Mapping[str, Any]) -> str:
    """A number with its 95 % interval, which is asymmetric near 0 and 1."""
    return f"{found['value']:.3f} [{found['low']:.2f}, {found['high']:.2f}]"


READERS = {
    "train": _trained,
    "generate": _generated,
    "evaluate": _evaluated,
    "stress": _evaluated,
    "call": lambda folder: {},
}
