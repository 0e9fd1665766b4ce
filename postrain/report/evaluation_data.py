"""An evaluation's folder as the report reads it: what is there and can be shown, with a line on whatever is not.

Nothing here raises for a half-written or odd file. The form of the files is said by evaluation/result_files.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from postrain.config.masking import masked
from postrain.jsonl import JsonLines, Record, number, read_json
from postrain.report.page import RESPONSES, STATS
from postrain.report.run_data import LARGEST, Sample
from postrain.runs.status import Status


@dataclass(frozen=True)
class Number:
    """A value with its interval, and how many observations it rests on, as far as these are known."""

    value: float
    low: float | None
    high: float | None
    n: int | None


@dataclass(frozen=True)
class Point:
    """A way to use a model at test time."""

    label: str
    tokens: float | None
    seconds: float | None
    kl: float | None
    score: Number


@dataclass(frozen=True)
class Measure:
    """What one measure found of one model."""

    metrics: Mapping[str, Number]
    example: str
    curves: Mapping[str, tuple[Point, ...]]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Subject:
    """A model."""

    name: str
    path: str
    data: str
    measures: Mapping[str, Measure]
    samples: tuple[Sample, ...]
    records: Mapping[str, tuple[Record, ...]]
    """By the measures' names."""

    def values(self, measure: str, key: str) -> list[float]:
        """The finite numbers under a key of a measure's records."""
        found = (number(record.get(key)) for record in self.records.get(measure, ()))
        return [value for value in found if value is not None and abs(value) < LARGEST]


@dataclass(frozen=True)
class Evaluation:
    """Everything the page shows."""

    path: Path
    status: Record
    manifest: Record
    subjects: tuple[Subject, ...]
    differences: Mapping[tuple[str, str], Mapping[str, Number]]
    """First subject minus another on the same items: by measure and metric, then by the other's name."""
    notes: tuple[str, ...]
    missing: tuple[str, ...]


def read_evaluation(path: Path) -> Evaluation:
    """The evaluation in a folder, finished or not."""
    found, missing = read_json(path / STATS), []
    if not found:
        missing.append(f"{STATS} is missing or damaged: no number is known")
    names = dict.fromkeys(name for one in _records(found.get("subjects")) for name in _mapping(one.get("measures")))
    records: dict[str, list[Record]] = {}
    for name in names:
        records[name], damaged = JsonLines(path / f"{Path(name).name}.jsonl").examine()
        missing += [f"{name}.jsonl: {damaged} damaged line{'s' if damaged > 1 else ''} left out"] if damaged else []
    responses = _responses(path / RESPONSES)
    return Evaluation(
        path=path.resolve(),
        status=Status(path / "status.json").current(),
        manifest=masked(read_json(path / "manifest.json")),
        subjects=tuple(_subject(one, records, responses) for one in _records(found.get("subjects"))),
        differences=_differences(found.get("differences")),
        notes=_texts(found.get("notes")),
        missing=tuple(missing),
    )


def _subject(found: Record, records: Mapping[str, list[Record]], responses: Iterable[Record]) -> Subject:
    name = str(found.get("name", "model"))
    own = {measure: tuple(one for one in lines if _of(one, name)) for measure, lines in records.items()}
    samples = [sample for one in responses if _of(one, name) and (sample := _sample(one)) is not None]
    return Subject(
        name=name,
        path=str(found.get("path", "")),
        data=str(found.get("data", "")),
        measures={measure: _measure(_mapping(one)) for measure, one in _mapping(found.get("measures")).items()},
        samples=tuple(samples),
        records=own,
    )


def _of(record: Record, name: str) -> bool:
    return record.get("subject", name) == name


def _measure(found: Record) -> Measure:
    curves = {way: tuple(_points(points)) for way, points in _mapping(found.get("curves")).items()}
    example = found.get("example")
    return Measure(
        metrics=dict(_numbers(_mapping(found.get("metrics")))),
        example=example if isinstance(example, str) else "",
        curves={way: points for way, points in curves.items() if points},
        notes=_texts(found.get("notes")),
    )


def _points(found: Any) -> Iterable[Point]:
    for one in _records(found):
        score = as_number(one.get("score"))
        if score is not None:
            tokens, seconds, kl = (_finite(one.get(name)) for name in ("tokens", "seconds", "kl"))
            yield Point(str(one.get("label", "")), tokens, seconds, kl, score)


def _numbers(found: Record) -> Iterable[tuple[str, Number]]:
    for name, one in found.items():
        if (known := as_number(one)) is not None:
            yield name, known


def as_number(found: Any) -> Number | None:
    """A value with what is known around it; None where the value is no finite number."""
    value = _finite(found.get("value")) if isinstance(found, dict) else None
    if value is None:
        return None
    n = _finite(found.get("n"))
    return Number(value, _finite(found.get("low")), _finite(found.get("high")), None if n is None else int(n))


def _differences(found: Any) -> dict[tuple[str, str], dict[str, Number]]:
    made: dict[tuple[str, str], dict[str, Number]] = {}
    for one in _records(found):
        if (known := as_number(one)) is not None:
            key = str(one.get("measure")), str(one.get("metric"))
            made.setdefault(key, {})[str(one.get("against"))] = known
    return made


def _sample(found: Record) -> Sample | None:
    prompt, completion = found.get("prompt"), found.get("completion")
    if not isinstance(prompt, str) or not isinstance(completion, str):
        return None
    scores = {f"{name}/total": value for name in ("reward", "gold") if (value := _finite(found.get(name))) is not None}
    return Sample(0, -1, prompt, completion, scores)


def _responses(path: Path) -> list[Record]:
    try:
        return _records(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError):
        return []


def _finite(value: Any) -> float | None:
    known = number(value)
    return known if known is not None and abs(known) < LARGEST else None


def _records(found: Any) -> list[Record]:
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _mapping(found: Any) -> Record:
    return found if isinstance(found, dict) else {}


def _texts(found: Any) -> tuple[str, ...]:
    return tuple(str(one) for one in found) if isinstance(found, list) else ()
