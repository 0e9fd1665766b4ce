"""The folders that a report is of, as they are read: whatever is there, with a line on whatever is not.

Nothing here raises for a missing, half-written or odd file: a report is most wanted when a run went wrong. The numbers
of an evaluation are read by evaluations.py, a sweep by study.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from postrain.config.masking import masked
from postrain.formatting import duration
from postrain.jsonl import JsonLines, Record, number, read_json
from postrain.report.samples import Sample, answers_of, sample_of
from postrain.report.values import (
    LARGEST,
    Curve,
    damaged,
    finite,
    mapping,
    read_yaml,
    records_of,
    text_of,
    update_of,
    whole,
)
from postrain.runs.status import Status

STATES = ("done", "failed", "interrupted", "running")

MOST_SECONDS = 1e11
"""Later than any run: a damaged status file."""

USES = ("read", "learned", "right", "wrong")

WHY = {
    "metrics.jsonl": "no curves: the run ended before its first update",
    "samples.jsonl": "no samples: the method writes no text, or evaluation.completions is 0",
    "manifest.json": "nothing is known about code, data and machine",
    "status.json": "whether the run came to its end is not known",
    "config.yaml": "the settings are not known",
}


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


@dataclass(frozen=True, kw_only=True)
class Folder:
    """What folders of all kinds hold."""

    path: Path
    status: Record = field(default_factory=dict)
    manifest: Record = field(default_factory=dict)
    missing: Sequence[str] = ()
    """One line for everything that is not there or could not be read."""

    @property
    def state(self) -> str:
        """running, done, failed, interrupted or unknown."""
        return state_of(self.status)

    @property
    def took(self) -> str:
        """How long it ran; empty where that is not known."""
        return took(number(self.status.get("seconds")) or 0.0)

    @property
    def data(self) -> Record:
        """What the audit has counted, and which rows these are."""
        return mapping(self.manifest.get("data"))


@dataclass(frozen=True, kw_only=True)
class Run(Folder):
    """A training run."""

    config: str = ""
    metrics: Mapping[str, Curve] = field(default_factory=dict)
    """Every metric, in the order in which metrics first appear; values that are no finite number are left out."""
    updates: int = 0
    seconds: float = 0.0
    """From the first record to the last one."""
    samples: Sequence[Sample] = ()
    explanations: Sequence[Record] = ()
    result: Record = field(default_factory=dict)
    """What the run says of itself at its end: result.json."""

    @property
    def method(self) -> str:
        """What the run is called: its name, else its method's."""
        target = text_of(mapping(self.settings.get("method")).get("_target_"))
        named = text_of(self.settings.get("name")) or target.rpartition(".")[2].lower()
        return named or (self.path.parts[-3] if len(self.path.parts) > 2 else "run")

    @property
    def model(self) -> str:
        above = self.path.parts[-2] if len(self.path.parts) > 1 else ""
        return text_of(mapping(self.manifest.get("model")).get("name")) or above

    @property
    def settings(self) -> Record:
        """The config, as the manifest has it."""
        return mapping(self.manifest.get("config"))

    @property
    def took(self) -> str:
        return super().took or took(self.seconds)

    def masks(self) -> list[MaskedRow]:
        """The training rows of which the manifest tells what is learned."""
        return [row for one in records_of(self.data.get("shown")) if (row := _masked(one)) is not None]

    def after(self, name: str) -> float | None:
        """The last value of a metric."""
        return self.metrics[name][1][-1] if name in self.metrics else None


@dataclass(frozen=True, kw_only=True)
class Generation(Folder):
    """Completions of prompts, with what is kept of them."""

    summary: Record = field(default_factory=dict)
    prompts: Sequence[Sequence[Sample]] = ()
    """The completions of each prompt."""

    @property
    def samples(self) -> list[Sample]:
        """All completions."""
        return [sample for prompt in self.prompts for sample in prompt]

    def kept(self) -> str:
        """Rows of the data file, of the completions there are."""
        kept = number(self.summary.get("kept"))
        return f"{kept:.0f} of {len(self.samples)}" if kept is not None and kept >= 0 else ""


def common(path: Path) -> dict[str, Any]:
    """What is read of folders of all kinds."""
    manifest, status = masked(read_json(path / "manifest.json")), Status(path / "status.json").current()
    return {"path": path.resolve(), "status": status, "manifest": manifest}


def read_run(path: Path) -> Run:
    """The run in a folder, finished or not."""
    path = path.resolve()
    records, damaged_records = JsonLines(path / "metrics.jsonl").examine()
    samples, damaged_samples = JsonLines(path / "samples.jsonl").examine()
    counts = {"metrics.jsonl": damaged_records, "samples.jsonl": damaged_samples}
    times = [value for record in records if (value := number(record.get("time"))) is not None]
    return Run(
        **common(path),
        config=shown_config(path / "config.yaml"),
        metrics=curves(records),
        updates=max((update_of(record) for record in records), default=0),
        seconds=times[-1] - times[0] if times else 0.0,
        samples=[sample for record in samples if (sample := sample_of(record)) is not None],
        explanations=[record for record in JsonLines(path / "explanations.jsonl").read() if record.get("text")],
        missing=list(_missing(path, counts)) + _not_numbers(records),
        result=read_json(path / "result.json"),
    )


def read_generation(path: Path) -> Generation:
    """The generation in a folder, finished or not."""
    records, count = JsonLines(path / "completions.jsonl").examine()
    summary = read_json(path / "summary.json")
    missing = [] if summary else ["summary.json is missing or damaged: the generation did not come to its end"]
    return Generation(
        **common(path),
        summary=summary,
        prompts=[answers for record in records if (answers := answers_of(record))],
        missing=[*damaged("completions.jsonl", count), *missing],
    )


def shown_config(path: Path) -> str:
    """A config.yaml without its secrets; "" where it is not YAML."""
    config = read_yaml(path)
    return yaml.safe_dump(masked(config), sort_keys=False, allow_unicode=True) if config else ""


def state_of(status: Record) -> str:
    """What a status.json says, in a word that is known."""
    return state if (state := status.get("status")) in STATES and isinstance(state, str) else "unknown"


def took(seconds: float) -> str:
    """A time for people; empty for one that cannot be."""
    return duration(seconds) if 0 < seconds < MOST_SECONDS else ""


def curves(records: Iterable[Record]) -> dict[str, Curve]:
    """The finite values of every metric with the updates they belong to."""
    found: dict[str, Curve] = {}
    for record in records:
        for name, value in record.items():
            known = finite(value)
            if name not in ("update", "time") and known is not None:
                updates, values = found.setdefault(name, ([], []))
                updates.append(update_of(record))
                values.append(known)
    return found


def _masked(record: Record) -> MaskedRow | None:
    if not isinstance(record.get("stretches"), list):
        return None
    parts = [(text_of(part.get("text")), part.get("use")) for part in records_of(record.get("stretches"))]
    title = f"row {whole(record.get('row'), 0)} {text_of(record.get('role'))}"
    return MaskedRow(title.strip(), tuple((text, str(use) if use in USES else "read") for text, use in parts if text))


def _missing(path: Path, counts: Mapping[str, int]) -> Iterable[str]:
    for name, why in WHY.items():
        if not (path / name).is_file():
            yield f"{name} is missing: {why}"
        elif name.endswith(".json") and not read_json(path / name):
            yield f"{name} is damaged: {why}"
        else:
            yield from damaged(name, counts.get(name, 0))


def _not_numbers(records: Iterable[Record]) -> list[str]:
    first: dict[str, int] = {}
    for record in records:
        for name, value in record.items():
            known = number(value)
            if known is not None and not abs(known) < LARGEST:
                first.setdefault(name, update_of(record))
    return [f"{name} was no finite number, first at update {update}" for name, update in first.items()]
