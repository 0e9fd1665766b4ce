"""A run folder as the report reads it: whatever is there, with a line on whatever is not.

Nothing here raises for a missing, half-written or odd file: a report is most wanted when a run went wrong.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from postrain.jsonl import JsonLines, Record, number, read_json

Curve = tuple[list[int], list[float]]
"""Updates, and the metric after each of them."""

LARGEST = 1e100
"""What is larger has left all bounds and cannot be drawn; infinity is larger, and nan is nothing."""

WHY = {
    "metrics.jsonl": "no curves: the run ended before its first update",
    "samples.jsonl": "no samples: the method writes no text, or evaluation.completions is 0",
    "manifest.json": "nothing is known about code, data and machine",
    "status.json": "whether the run came to its end is not known",
    "config.yaml": "the settings are not known",
}


@dataclass(frozen=True)
class Sample:
    """One line of samples.jsonl, with what was unusable in it left out."""

    update: int
    row: int
    prompt: str
    completion: str
    scores: dict[str, float]
    """reward/<part> and gold/<part>; parts that could not score are absent."""


@dataclass(frozen=True)
class RunData:
    """Everything the report shows."""

    path: Path
    status: Record
    manifest: Record
    config: str
    metrics: dict[str, Curve]
    """Every metric, in the order in which metrics first appear; values that are no finite number are left out."""
    updates: int
    seconds: float
    """From the first record to the last one."""
    samples: list[Sample]
    explanations: list[Record]
    missing: list[str]
    """One line for everything that is not there or could not be read."""

    @property
    def method(self) -> str:
        return self.path.parts[-3] if len(self.path.parts) > 2 else "run"

    @property
    def model(self) -> str:
        return self.path.parts[-2] if len(self.path.parts) > 1 else ""


def read_run(path: Path) -> RunData:
    """Read the folder of a run, finished or not."""
    path = path.resolve()
    records, damaged_records = JsonLines(path / "metrics.jsonl").examine()
    samples, damaged_samples = JsonLines(path / "samples.jsonl").examine()
    damaged = {"metrics.jsonl": damaged_records, "samples.jsonl": damaged_samples}
    times = [value for record in records if (value := number(record.get("time"))) is not None]
    config = path / "config.yaml"
    return RunData(
        path=path,
        status=read_json(path / "status.json"),
        manifest=read_json(path / "manifest.json"),
        config=config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "",
        metrics=curves(records),
        updates=max((update_of(record) for record in records), default=0),
        seconds=times[-1] - times[0] if times else 0.0,
        samples=[sample for record in samples if (sample := _sample(record)) is not None],
        explanations=[record for record in JsonLines(path / "explanations.jsonl").read() if record.get("text")],
        missing=list(_missing(path, damaged)) + _not_numbers(records),
    )


def update_of(record: Record) -> int:
    """The update a record belongs to; 0 when it does not say."""
    return _whole(record.get("update"), 0)


def _whole(value: Any, otherwise: int) -> int:
    known = number(value)
    return int(known) if known is not None and 0 <= known < 1e15 else otherwise


def curves(records: Iterable[Record]) -> dict[str, Curve]:
    """The finite values of every metric with the updates they belong to."""
    found: dict[str, Curve] = {}
    for record in records:
        for name, value in record.items():
            known = number(value)
            if name not in ("update", "time") and known is not None and abs(known) < LARGEST:
                updates, values = found.setdefault(name, ([], []))
                updates.append(update_of(record))
                values.append(known)
    return found


def _sample(record: Record) -> Sample | None:
    prompt, completion = record.get("prompt"), record.get("completion")
    if not isinstance(prompt, str) or not isinstance(completion, str):
        return None
    scores = {f"reward/{name}": value for name, value in _scores(record.get("rewards"))}
    scores |= {f"gold/{name}": value for name, value in _scores(record.get("gold"))}
    return Sample(update_of(record), _whole(record.get("row"), -1), prompt, completion, scores)


def _scores(parts: Any) -> Iterable[tuple[str, float]]:
    """The finite scores; of a single part that is the whole total, only the total."""
    found = {name: number(value) for name, value in parts.items()} if isinstance(parts, dict) else {}
    if len(found) == 2 and "total" in found and len(set(found.values())) == 1:
        found = {"total": found["total"]}
    return [(name, value) for name, value in found.items() if value is not None and abs(value) < LARGEST]


def _missing(path: Path, damaged: dict[str, int]) -> Iterable[str]:
    for name, why in WHY.items():
        if not (path / name).is_file():
            yield f"{name} is missing: {why}"
        elif name.endswith(".json") and not read_json(path / name):
            yield f"{name} is damaged: {why}"
        elif lines := damaged.get(name):
            yield f"{name}: {lines} damaged line{'s' if lines > 1 else ''} left out"


def _not_numbers(records: Iterable[Record]) -> list[str]:
    first: dict[str, int] = {}
    for record in records:
        for name, value in record.items():
            known = number(value)
            if known is not None and not abs(known) < LARGEST:
                first.setdefault(name, update_of(record))
    return [f"{name} was no finite number, first at update {update}" for name, update in first.items()]
