"""Metrics of each part of the held-out rows: the sources of a mixture, and the named files of data.eval_path."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from postrain.data.module import DataModule
from postrain.errors import ConfigError
from postrain.evaluation.differences import shares
from postrain.evaluation.estimate import Estimate
from postrain.evaluation.task import EvalResult
from postrain.metrics import declarations


def check_part_names(data: DataModule, tasks: Iterable[str]) -> None:
    """Raises ConfigError for a part whose metrics eval/NAME/... would mix with others."""
    families = {name for one in declarations() for name in one.name.split("/")[:1] if "*" not in name}
    taken = {"eval", "greedy", "gold", *tasks, *families}
    for part in data.held_out:
        if part.name in taken:
            raise ConfigError(
                f"data: {part.name} cannot name held-out rows, since eval/{part.name}/... are other metrics; choose "
                "another name, as in data.mix={NAME: {path: FILE}} or data.eval_path={NAME: FILE}"
            )


def rows_by_part(rows: Iterable[int], data: DataModule) -> dict[str, list[int]]:
    """The positions in `rows` of the rows of each part with metrics of its own."""
    found: dict[str, list[int]] = {part.name: [] for part in data.held_out if part.name}
    for position, row in enumerate(rows):
        if name := data.held_out_part(row):
            found[name].append(position)
    return {name: positions for name, positions in found.items() if positions}


def with_parts(result: EvalResult, data: DataModule) -> EvalResult:
    """The result of a task with PART/METRIC for each part and each metric that is a mean over held-out rows.

    Its records get the field `part`.
    """
    part_of = {record.get("row"): part for record in result.records if (part := _part(record, data))}
    if not part_of:
        return result
    found: dict[str, list[tuple[float, float]]] = {}
    for metric in result.metrics:
        for row, item in shares(result, metric).items():
            if row in part_of:
                found.setdefault(f"{part_of[row]}/{metric}", []).append(item)
    records = (
        {**record, "part": part_of[record["row"]]} if record.get("row") in part_of else record
        for record in result.records
    )
    metrics = {**result.metrics, **{name: _estimate(items) for name, items in found.items()}}
    return replace(result, metrics=metrics, records=tuple(records))


def _part(record: Mapping[str, Any], data: DataModule) -> str:
    """The part of the held-out row that an item comes from; empty without one."""
    row = record.get("held_out_row", record.get("row"))
    return data.held_out_part(row) if isinstance(row, int) else ""


def _estimate(items: Sequence[tuple[float, float]]) -> Estimate:
    """The weighted mean of items (value, weight) with its interval."""
    if all(weight == 1 for _, weight in items):
        return Estimate.of([value for value, _ in items])
    return Estimate.ratio([value * weight for value, weight in items], [weight for _, weight in items])
