"""The runs, sweeps, pipelines, evaluations and generations below a folder, each as one row of the index page.

Reads the small files of finished runs only (status, result, manifest), so that an index of hundreds of runs takes about
a second; of unfinished ones also the metrics.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from postrain.config import renamed
from postrain.errors import ConfigError
from postrain.formatting import figure, short
from postrain.jsonl import number, read_json
from postrain.report.folders import MOST_SECONDS, Run, curves, read_metrics
from postrain.report.kinds import folders
from postrain.report.page import PAGE
from postrain.report.panels import HEADLINES, Ends, before_and_after, ends_text
from postrain.report.sweep_results import read_sweep
from postrain.report.sweep_summary import sentences
from postrain.report.values import finite, is_held_out, mapping, text_of, update_of
from postrain.runs.folder import check_contained
from postrain.runs.status import Status

MOST_METRICS = 8


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A row of the index."""

    kind: str
    path: Path
    name: str
    model: str = ""
    state: str = "unknown"
    started: float = 0.0
    """Unix time; 0 where it is not known."""
    seconds: float = 0.0
    overrides: str = ""
    """Of its command line."""
    progress: str = ""
    """Updates of a run, jobs of a sweep: done, or done/total."""
    metric: str = ""
    ends: Ends | None = None
    """The deciding metric before and after training."""
    text: str = ""
    """Result of an entry without such a metric: the answer of a sweep, or why a run failed."""
    metrics: Mapping[str, Ends] = field(default_factory=dict)
    """The main held-out metrics, for the comparison in the page."""

    @property
    def has_report(self) -> bool:
        return (self.path / PAGE).is_file()

    @property
    def comparable(self) -> bool:
        """Whether `postrain report` compares it with others of its kind."""
        return self.kind in ("run", "evaluation")

    @property
    def result(self) -> str:
        """The metric before and after, else the text."""
        if self.ends is None:
            return self.text
        return f"{short(self.metric)} {ends_text(self.ends)}"

    @property
    def data(self) -> str:
        """The metrics as JSON, formatted."""
        return json.dumps(
            {short(name): [figure(one) for one in ends if one is not None] for name, ends in self.metrics.items()}
        )


def read_entries(root: Path) -> list[Entry]:
    """All rows, the newest first."""
    found = [_entry(kind, path) for kind, path in folders(root)]
    return sorted(found, key=lambda one: (-one.started, str(one.path)))


def _entry(kind: str, path: Path) -> Entry:
    try:
        check_contained(path)
    except ConfigError as error:
        return Entry(kind=kind, path=path, name=path.name, text=str(error))
    # write_page hides secrets: masking whole manifests would take most of the time.
    status = Status(path / "status.json").current()
    run = Run(path=path, status=status, manifest=read_json(path / "manifest.json"))
    started, seconds = (number(status.get(name)) or 0.0 for name in ("started", "seconds"))
    arguments = text_of(run.manifest.get("reproduce")).split(" ")
    entry = Entry(
        kind=kind,
        path=path,
        name=path.name,
        model=text_of(mapping(run.manifest.get("model")).get("name")),
        state=run.state,
        started=started if 0 < started < MOST_SECONDS else 0.0,
        seconds=seconds if 0 < seconds < MOST_SECONDS else 0.0,
        text=text_of(status.get("reason")),
        overrides=" ".join(arguments[2:]),
    )
    if kind == "sweep":
        return _sweep(entry)
    return _run(entry, run) if kind == "run" else entry


def _sweep(entry: Entry) -> Entry:
    try:
        study = read_sweep(entry.path)
    except ConfigError as error:
        return replace(entry, text=str(error))
    done = sum(job.state == "done" for job in study.jobs)
    answer = next(iter(sentences(study)), entry.text)
    return replace(entry, name=study.name, progress=f"{done}/{len(study.jobs)} jobs", text=answer)


def _run(entry: Entry, run: Run) -> Entry:
    result = renamed.result(read_json(entry.path / "result.json"))
    ends = {name: both for name, values in mapping(result.get("changes")).items() if (both := _ends(values))}
    updates = number(result.get("updates"))
    if not ends:
        records, _ = read_metrics(entry.path)
        measured = curves(records)
        ends = {name: before_and_after(measured, name) for name in measured}
        updates = max(map(update_of, records), default=0)
    method = mapping(run.settings.get("method"))
    total = None if method.get("num_train_epochs") else number(method.get("updates"))
    wanted = ("eval/reward/total", text_of(result.get("metric")), *HEADLINES)
    main = next((name for name in wanted if name in ends), "")
    order = [name for name in HEADLINES if name in ends]
    order += [name for name in ends if is_held_out(name) and name not in order]
    return replace(
        entry,
        name=run.method if run.settings else entry.name,
        progress=f"{updates or 0:.0f}" + (f"/{total:.0f}" if total and total != updates else ""),
        metric=main,
        ends=ends.get(main),
        metrics={name: ends[name] for name in order[:MOST_METRICS]},
    )


def _ends(values: object) -> Ends | None:
    known = [finite(value) for value in values] if isinstance(values, Sequence) and len(values) == 2 else []
    return (known[0], known[1]) if len(known) == 2 and known[0] is not None and known[1] is not None else None
