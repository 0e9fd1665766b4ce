"""A run folder as the report reads it: whatever is there, with a line on whatever is not.

Nothing here raises for a missing, half-written or odd file: a report is most wanted when a run went wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from postrain.config.masking import masked
from postrain.jsonl import JsonLines, Record, modest, number, read_json
from postrain.runs.status import Status

STATES = ("done", "failed", "interrupted", "running")

Curve = tuple[list[int], list[float]]
"""Updates, and the metric after each of them."""

LARGEST = 1e100
"""What is larger has left all bounds and cannot be drawn; infinity is larger, and nan is nothing."""

USES = ("read", "learned", "right", "wrong")

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
    finished: bool | None = None
    """Whether it ended by itself, where that was noted."""

    @property
    def length(self) -> float:
        """In words: tokens are not kept."""
        return float(len(self.completion.split()))


@dataclass(frozen=True)
class MaskedRow:
    """A training row as the audit has kept it."""

    title: str
    stretches: tuple[tuple[str, str], ...]
    """Text, and its use: read, learned, right or wrong."""

    @property
    def judged(self) -> bool:
        """Whether steps are judged in it."""
        return any(use in ("right", "wrong") for _, use in self.stretches)


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

    result: Record
    """What the run says of itself at its end: result.json."""

    @property
    def method(self) -> str:
        """What the run is called: its name, else its method's."""
        settings = self.settings
        target = _at(settings, "method", "_target_")
        named = _text(settings.get("name")) or _text(target).rpartition(".")[2].lower()
        return named or (self.path.parts[-3] if len(self.path.parts) > 2 else "run")

    @property
    def model(self) -> str:
        above = self.path.parts[-2] if len(self.path.parts) > 1 else ""
        return _text(_at(self.manifest, "model", "name")) or above

    @property
    def settings(self) -> Record:
        """The config, as the manifest has it."""
        found = self.manifest.get("config")
        return found if isinstance(found, dict) else {}

    @property
    def data(self) -> Record:
        """What the audit has counted."""
        found = self.manifest.get("data")
        return found if isinstance(found, dict) else {}

    @property
    def state(self) -> str:
        """running, done, failed, interrupted or unknown."""
        return state_of(self.status)

    def masks(self) -> list[MaskedRow]:
        """The training rows of which the manifest tells what is learned."""
        rows = self.data.get("shown")
        return [row for one in rows if (row := _masked(one)) is not None] if isinstance(rows, list) else []

    def after(self, name: str) -> float | None:
        """The last value of a metric."""
        return self.metrics[name][1][-1] if name in self.metrics else None


def state_of(status: Record) -> str:
    """What a status.json says, in a word that is known."""
    return state if (state := status.get("status")) in STATES and isinstance(state, str) else "unknown"


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
        status=Status(path / "status.json").current(),
        manifest=masked(read_json(path / "manifest.json")),
        config=shown_config(config) if config.is_file() else "",
        metrics=curves(records),
        updates=max((update_of(record) for record in records), default=0),
        seconds=times[-1] - times[0] if times else 0.0,
        samples=[sample for record in samples if (sample := sample_of(record)) is not None],
        explanations=[record for record in JsonLines(path / "explanations.jsonl").read() if record.get("text")],
        missing=list(_missing(path, damaged)) + _not_numbers(records),
        result=read_json(path / "result.json"),
    )


def shown_config(path: Path) -> str:
    """A config.yaml without its secrets; "" where it is not YAML."""
    try:
        config: Any = yaml.safe_load(path.read_text(encoding="utf-8", errors="replace"))
    except (yaml.YAMLError, ValueError, RecursionError):
        return ""
    known = isinstance(config, Mapping) and modest(config)
    return yaml.safe_dump(masked(config), sort_keys=False, allow_unicode=True) if known else ""


def read_samples(path: Path) -> list[Sample]:
    """The samples in a run folder."""
    return [sample for record in JsonLines(path / "samples.jsonl").read() if (sample := sample_of(record)) is not None]


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


def sample_of(record: Record) -> Sample | None:
    """A line of samples.jsonl; None for one without a prompt and a completion."""
    prompt, completion = record.get("prompt"), record.get("completion")
    if not isinstance(prompt, str) or not isinstance(completion, str):
        return None
    scores = {f"reward/{name}": value for name, value in _scores(record.get("rewards"))}
    scores |= {f"gold/{name}": value for name, value in _scores(record.get("gold"))}
    ended = record.get("finished")
    finished = ended if isinstance(ended, bool) else None
    return Sample(update_of(record), _whole(record.get("row"), -1), prompt, completion, scores, finished)


def _masked(record: Any) -> MaskedRow | None:
    stretches = record.get("stretches") if isinstance(record, dict) else None
    if not isinstance(stretches, list):
        return None
    parts = [(_text(part.get("text")), _text(part.get("use"))) for part in stretches if isinstance(part, dict)]
    title = f"row {_whole(record.get('row'), 0)} {_text(record.get('role'))}"
    return MaskedRow(title.strip(), tuple((text, use if use in USES else "read") for text, use in parts if text))


def _at(record: Any, *keys: str) -> Any:
    for key in keys:
        record = record.get(key) if isinstance(record, dict) else None
    return record


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


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
