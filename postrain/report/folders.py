"""Reads the folders of runs and generations.

Missing, truncated or damaged files raise no error, since a report is needed most when a run went wrong; each is listed
in `missing`. Evaluations are read by evaluations.py, sweeps by sweep_results.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from postrain.config import old_names, renamed
from postrain.config.masking import masked
from postrain.config.yaml_file import dump_yaml
from postrain.formatting import duration
from postrain.jsonl import JsonLines, Record, number, read_json, records_of
from postrain.report.held_out import HeldOutRows, read_held_out
from postrain.report.samples import Sample, answers_of, sample_of
from postrain.report.values import LARGEST, Curve, damaged, finite, mapping, read_yaml, text_of, update_of, whole
from postrain.runs.folder import RunFolder
from postrain.runs.status import Status

STATES = ("done", "failed", "interrupted", "running")

MOST_SECONDS = 1e11
"""A larger time or duration comes from a damaged file."""

TOKEN_USES = ("context", "loss", "positive_step", "negative_step")

WHY = {
    "metrics.jsonl": "no curves: the run ended before its first update",
    "samples.jsonl": "no samples: the method samples no text, or evaluation.completions is 0",
    "manifest.json": "code, data and machine are unknown",
    "status.json": "unknown whether the run finished",
    "config.yaml": "the settings are unknown",
}


@dataclass(frozen=True)
class MaskedRow:
    """A training row with its loss mask, from the data audit."""

    title: str
    stretches: tuple[tuple[str, str], ...]
    """Text and its use: context, loss, positive_step or negative_step."""

    @property
    def has_step_labels(self) -> bool:
        """Whether it has labelled steps."""
        return any(use in ("positive_step", "negative_step") for _, use in self.stretches)


@dataclass(frozen=True, kw_only=True)
class Folder:
    """Files common to all kinds of folders."""

    path: Path
    status: Record = field(default_factory=dict)
    manifest: Record = field(default_factory=dict)
    missing: Sequence[str] = ()
    """A line for each file that is missing or could not be read."""

    @property
    def state(self) -> str:
        """running, done, failed, interrupted or unknown."""
        return state_of(self.status)

    @property
    def took(self) -> str:
        """Its duration; empty if unknown."""
        return took(number(self.status.get("seconds")) or 0.0)

    @property
    def data(self) -> Record:
        """The data audit."""
        return mapping(self.manifest.get("data"))


@dataclass(frozen=True, kw_only=True)
class Run(Folder):
    """A training run."""

    config: str = ""
    metrics: Mapping[str, Curve] = field(default_factory=dict)
    """Every metric, in order of first appearance, without values that are not finite."""
    updates: int = 0
    seconds: float = 0.0
    """Time from the first record to the last."""
    samples: Sequence[Sample] = ()
    held_out: Mapping[str, HeldOutRows] = field(default_factory=dict)
    """The rows of held-out metrics, where they are saved."""
    diagnostics: Sequence[Record] = ()
    result: Record = field(default_factory=dict)
    """result.json, written at the end."""

    @property
    def method(self) -> str:
        """The name of the run, by default that of its method."""
        target = text_of(mapping(self.settings.get("method")).get("_target_"))
        named = text_of(self.settings.get("name")) or target.rpartition(".")[2].lower()
        return named or (self.path.parts[-3] if len(self.path.parts) > 2 else "run")

    @property
    def model(self) -> str:
        above = self.path.parts[-2] if len(self.path.parts) > 1 else ""
        return text_of(mapping(self.manifest.get("model")).get("name")) or above

    @property
    def settings(self) -> Record:
        """The config in the manifest."""
        return mapping(self.manifest.get("config"))

    @property
    def took(self) -> str:
        return super().took or took(self.seconds)

    def masks(self) -> list[MaskedRow]:
        """The training rows whose loss mask is in the manifest."""
        return [row for one in records_of(self.data.get("shown")) if (row := _masked(one)) is not None]

    def after(self, name: str) -> float | None:
        """The last value of a metric."""
        return self.metrics[name][1][-1] if name in self.metrics else None


@dataclass(frozen=True, kw_only=True)
class Generation(Folder):
    """Completions of prompts, and the selected ones."""

    summary: Record = field(default_factory=dict)
    prompts: Sequence[Sequence[Sample]] = ()
    """The completions of each prompt."""

    @property
    def samples(self) -> list[Sample]:
        """All completions."""
        return [sample for prompt in self.prompts for sample in prompt]

    def kept(self) -> str:
        """How many completions were selected, of how many."""
        kept = number(self.summary.get("kept"))
        return f"{kept:.0f} of {len(self.samples)}" if kept is not None and kept >= 0 else ""


def common(path: Path) -> dict[str, Any]:
    """The fields of `Folder`."""
    manifest, status = masked(read_json(path / "manifest.json")), Status(path / "status.json").current()
    return {"path": path.resolve(), "status": status, "manifest": manifest}


def read_run(path: Path) -> Run:
    """The run in a folder, finished or not."""
    path = path.resolve()
    records, damaged_records = read_metrics(path)
    samples, damaged_samples = JsonLines(path / "samples.jsonl").examine()
    counts = {"metrics.jsonl": damaged_records, "samples.jsonl": damaged_samples}
    times = [value for record in records if (value := number(record.get("time"))) is not None]
    return Run(
        **common(path),
        config=masked_config(path / "config.yaml"),
        metrics=curves(records),
        updates=max((update_of(record) for record in records), default=0),
        seconds=times[-1] - times[0] if times else 0.0,
        samples=[sample for record in samples if (sample := sample_of(record)) is not None],
        held_out=read_held_out(RunFolder(path).held_out.read()),
        diagnostics=[record for record in RunFolder(path).diagnostics.read() if record.get("text")],
        missing=list(_missing(path, counts)) + _not_numbers(records),
        result=renamed.result(read_json(path / "result.json")),
    )


def read_metrics(path: Path) -> tuple[list[Record], int]:
    """The records of metrics.jsonl under the present names of their metrics, and the number of damaged lines."""
    records, count = JsonLines(path / "metrics.jsonl").examine()
    return [renamed.metrics(record) for record in records], count


def read_generation(path: Path) -> Generation:
    """The generation in a folder, finished or not."""
    records, count = JsonLines(path / "completions.jsonl").examine()
    summary = read_json(path / "summary.json")
    missing = [] if summary else ["summary.json is missing or damaged: the generation did not finish"]
    return Generation(
        **common(path),
        summary=summary,
        prompts=[answers for record in records if (answers := answers_of(record))],
        missing=[*damaged("completions.jsonl", count), *missing],
    )


def masked_config(path: Path) -> str:
    """A config.yaml with secrets masked; "" if it is not YAML."""
    config = read_yaml(path)
    return dump_yaml(masked(config)) if config else ""


def state_of(status: Record) -> str:
    """The state in a status.json: one of STATES, or unknown."""
    return state if (state := status.get("status")) in STATES and isinstance(state, str) else "unknown"


def took(seconds: float) -> str:
    """A formatted duration; empty for an impossible one."""
    return duration(seconds) if 0 < seconds < MOST_SECONDS else ""


def curves(records: Iterable[Record]) -> dict[str, Curve]:
    """The finite values of every metric with their updates."""
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
    parts = [(text_of(part.get("text")), _token_use(part.get("use"))) for part in records_of(record.get("stretches"))]
    title = f"{text_of(record.get('source'))} row {whole(record.get('row'), 0)} {text_of(record.get('role'))}"
    return MaskedRow(title.strip(), tuple((text, use) for text, use in parts if text))


def _token_use(value: object) -> str:
    use = old_names.TOKEN_USES.get(value, value) if isinstance(value, str) else value
    return use if isinstance(use, str) and use in TOKEN_USES else "context"


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
    return [f"{name} was not finite, first at update {update}" for name, update in first.items()]
