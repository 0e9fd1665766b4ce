"""Checks of records that need no computation: they are complete, and they agree with each other.

A changed number of one file contradicts another one: held-out rows add up to metrics, samples repeat the scores of
held-out rows, result.json repeats metrics, and checkpoints repeat the counters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite, isnan
from pathlib import Path
from typing import Any

import torch

from postrain.jobs.findings import Findings
from postrain.jsonl import JsonLines, Record, number, plain, read_json, update_of
from postrain.runs.folder import RunFolder
from postrain.runs.forks import RECORDS, update_of_checkpoint
from postrain.runs.status import checkpoints
from postrain.training.checkpoints import is_whole
from postrain.training.finalize import before_and_after

ROUNDED = 1e-5
"""The relative error of a mean computed from rows of seven digits."""
COUNTERS = ("optimizer_steps", "episodes", "tokens")


def comparable(records: Iterable[Record], first: int, last: int) -> list[Record]:
    """The records of updates after `first` (or of update 0) up to `last`, without times."""
    return [
        {name: value for name, value in record.items() if name != "time" and not name.startswith("perf/")}
        for record in records
        if first < update_of(record) <= last or (first == 0 and update_of(record) == 0)
    ]


def compare_records(found: Findings, run: RunFolder, repeated: RunFolder, first: int, last: int) -> None:
    """Compares the records of the updates that were repeated."""
    # Diagnostics follow from the metrics; their number and wording depend on the version.
    for kind in (name for name in RECORDS if name != "diagnostics"):
        ours: JsonLines = getattr(run, kind)
        mine = comparable(ours.read(), first, last)
        theirs = comparable(getattr(repeated, kind).read(), first, last)
        if len(mine) != len(theirs):
            where = f"{ours.path.name}, updates {first + 1} to {last}"
            found.mismatches.append(f"{where}: {len(mine)} records, {len(theirs)} when re-executed")
        for one, other in zip(mine, theirs, strict=False):
            found.records(f"{kind} of re-executed updates", f"{ours.path.name}, update {update_of(one):g}", one, other)


def check_consistency(found: Findings, run: RunFolder) -> None:
    """Checks that the records of all updates are complete and agree with each other."""
    metrics, samples, held_out = run.metrics.examine(), run.samples.examine(), run.held_out.examine()
    files = zip(("metrics.jsonl", "samples.jsonl", "held_out.jsonl"), (metrics, samples, held_out), strict=True)
    found.mismatches += [f"{name}: {count} damaged lines" for name, (_, count) in files if count]
    updates = [int(update_of(record)) for record in metrics[0]]
    # Without a first evaluation there is no record of update 0.
    expected = list(range(updates[0], updates[0] + len(updates))) if updates and updates[0] in (0, 1) else []
    if updates != expected:
        gap = next((two for two, one in zip(expected, updates, strict=False) if one != two), len(updates))
        found.mismatches.append(f"metrics.jsonl: the record of update {gap} is missing, doubled or out of order")
    by_update = {int(update_of(record)): record for record in metrics[0]}
    rows = {(int(update_of(record)), str(record.get("metric"))): record for record in held_out[0]}
    for (update, name), record in rows.items():
        _adds_up(found, update, name, record, by_update.get(update, {}))
    _check_samples(found, samples[0], rows)
    _check_result(found, run, metrics[0])
    for path in checkpoints(run.path):
        _check_counters(found, path, by_update)


def _adds_up(found: Findings, update: int, name: str, record: Record, metrics: Mapping[str, Any]) -> None:
    """Checks one metric against its held-out rows."""
    logged = number(metrics.get(name if name.startswith("gold/") else f"eval/{name}"))
    totals, counts = _numbers(record.get("totals")), _numbers(record.get("counts"))
    if totals is None or counts is None:
        found.mismatches.append(f"held_out.jsonl, update {update}: {name} has no totals and counts")
        return
    value = sum(totals) / (sum(counts) or 1)
    found.compared["held-out means"] += 1
    if logged is None or not _agree(logged, value):
        found.mismatches.append(f"held_out.jsonl, update {update}: rows of {name} have mean {value:g}, logged {logged}")


def _numbers(values: Any) -> list[float] | None:
    """A list of numbers, which may be NaN or infinite; None for anything else."""
    found = [number(value) for value in values] if isinstance(values, list) else [None]
    known = [value for value in found if value is not None]
    return known if len(known) == len(found) else None


def _agree(one: float, other: float) -> bool:
    """Whether two numbers are equal up to rounding; NaN equals NaN."""
    near = abs(one - other) <= ROUNDED * max(abs(one), abs(other), 1e-3)
    return near if isfinite(one) and isfinite(other) else one == other or (isnan(one) and isnan(other))


def _check_samples(found: Findings, samples: Sequence[Record], rows: Mapping[tuple[int, str], Record]) -> None:
    """Checks the scores of samples against the held-out rows of their evaluation, which are in the same order."""
    numbers: dict[int, int] = {}
    for sample in samples:
        update = int(update_of(sample))
        position = numbers[update] = numbers.get(update, -1) + 1
        scores = {f"reward/{name}": value for name, value in (sample.get("rewards") or {}).items()}
        scores |= {f"gold/{name}": value for name, value in (sample.get("gold") or {}).items()}
        for name, score in scores.items():
            totals, value = _numbers(rows.get((update, name), {}).get("totals")), number(score)
            if totals is None or value is None or position >= len(totals):
                continue
            found.compared["scores of samples"] += 1
            if not _agree(totals[position], value):
                where = f"samples.jsonl, update {update}: sample {position}"
                found.mismatches.append(f"{where} has {name} {value:g}, held_out.jsonl {totals[position]:g}")


def _check_result(found: Findings, run: RunFolder, metrics: Sequence[Record]) -> None:
    """Checks result.json of a finished run against the metrics."""
    result = read_json(run.result)
    if not result:
        return
    changes = {name: list(values) for name, values in before_and_after(metrics).items()}
    objective = changes.get(str(result.get("metric")), [None, None])[1]
    known = {"changes": changes, "objective": objective, "updates": int(max(map(update_of, metrics), default=0))}
    found.records("result.json", "result.json", {name: result.get(name) for name in known}, plain(known))


def _check_counters(found: Findings, path: Path, metrics: Mapping[int, Record]) -> None:
    """Checks the counters of a checkpoint against the record of its update."""
    if not is_whole(path):
        found.mismatches.append(f"checkpoints/{path.name}: damaged")
        return
    saved = torch.load(path, map_location="meta", weights_only=True, mmap=True)
    update, counters = update_of_checkpoint(path), saved["postrain"]["counters"]
    record = metrics.get(update, {})
    known = {"updates": update, **{key: record.get(key) for key in COUNTERS}}
    found.records("counters", f"checkpoints/{path.name}", {key: counters.get(key) for key in known}, known)
