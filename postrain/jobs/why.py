"""`postrain why RUN --update N`: repeats an update and ranks its rows by their effect on a held-out number."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from postrain.errors import ConfigError
from postrain.formatting import figure
from postrain.jobs.findings import Findings
from postrain.jobs.influence import Influence, RowEffect
from postrain.jobs.replay import replay, starts
from postrain.jobs.verify_records import comparable
from postrain.jsonl import Record
from postrain.report import blocks
from postrain.report.page import Page, Section, section, write_json, write_page
from postrain.runs.folder import RunFolder
from postrain.runs.resume import checked_config


def why(run: RunFolder, update: int) -> tuple[Record, list[RowEffect]]:
    """Repeats an update of a run; returns what was measured, and the rows, the most harmful one first.

    Raises ConfigError for an update that the run did not make, that its checkpoints do not reach, or in which no row
    has a gradient.
    """
    last = run.last_update
    if not 1 <= update <= last:
        raise ConfigError(f"--update {update}: {run.path} has made the updates 1 to {last}; give one of them")
    if checked_config(run)["trainer"].get("strategy", "single") != "single":
        raise ConfigError(f"why: {run.path} was run on several ranks; rows are ranked in runs of one process only")
    reachable = [first for first in starts(run) if first < update]
    if not reachable:
        raise ConfigError(f"--update {update}: {run.path} was made with other settings before; give a later update")
    influence, found = Influence(update), Findings()
    with tempfile.TemporaryDirectory(prefix="postrain-why-") as scratch:
        repeated = replay(run, max(reachable), update, Path(scratch, "replay"), callbacks=[influence])
        ours, theirs = (comparable(each.metrics.read(), update - 1, update)[-1:] for each in (run, repeated))
        if not ours:
            found.mismatches.append(f"metrics.jsonl, update {update}: no whole record")
        for one, other in zip(ours, theirs, strict=False):
            found.records("metrics", f"metrics.jsonl, update {update}", one, other)
    rows = influence.ranked()
    if not rows:
        raise ConfigError(
            f"--update {update}: no row of this update of {run.path} has a gradient, as with equal rewards in each "
            "group; give another update"
        )
    about = {
        "update": update,
        "metric": influence.metric,
        "rows": len(rows),
        "repeated_from": max(reachable),
        "repeated_bit_for_bit": not found.mismatches,
        "differences": found.mismatches,
    }
    return about, rows


def write(run: RunFolder, about: Record, rows: Sequence[RowEffect], shown: int) -> Path:
    """Writes rows.json with all rows and report.html with the first and the last ones to RUN/why/update=N/."""
    folder = run.path / "why" / f"update={about['update']:06d}"
    heading = f"Update {about['update']}: rows by their effect on {about['metric']}"
    ends = extremes(rows, shown)
    page = Page(
        kind="run",
        title=heading,
        heading=heading,
        header=[blocks.Text(sentence(about))],
        sections=[_section(title, part, about["metric"]) for title, part in ends],
    )
    path = write_page(folder, page)
    write_json(folder / "rows.json", {**about, "ranked": [asdict(row) for row in rows]})
    return path


def extremes(rows: Sequence[RowEffect], shown: int) -> list[tuple[str, Sequence[RowEffect]]]:
    """The most harmful and the most helpful rows."""
    count = min(shown, (len(rows) + 1) // 2)
    return [("Most harmful", rows[:count]), ("Most helpful", rows[::-1][: min(count, len(rows) - count)])]


def sentence(about: Record) -> str:
    """What the effects are, and whether the repetition is the recorded update."""
    same = "equals the recorded one bit for bit" if about["repeated_bit_for_bit"] else "differs from the recorded one"
    return (
        f"Effect: the first-order change of {about['metric']} by each of the {about['rows']} rows of update "
        f"{about['update']}. The update, repeated from update {about['repeated_from']}, {same}."
    )


def _section(title: str, rows: Sequence[RowEffect], metric: str) -> Section | None:
    return section(title, *(_card(row, metric) for row in rows))


def _card(row: RowEffect, metric: str) -> blocks.Group:
    texts = [
        blocks.Text(f"{name + ': ' if len(row.texts) > 1 else ''}{prompt} → {completion}", "text")
        for name, (prompt, completion) in row.texts.items()
    ]
    metrics = blocks.Facts([(name, figure(value)) for name, value in sorted(row.metrics.items())])
    cells = [
        (one["token"], [blocks.Cell(text) for text in (figure(one["advantage"]), figure(one["ratio"]), _flag(one))])
        for one in row.tokens
    ]
    tokens = blocks.Table(("token", "advantage", "ratio", "clipped"), cells)
    title = blocks.line(f"row {row.row}", blocks.bold(f"{row.effect:+.3g} {metric}"))
    return blocks.card(title, *texts, metrics, blocks.details(f"{len(row.tokens)} tokens", tokens))


def _flag(token: Record) -> str:
    return {True: "yes", False: "no"}.get(token["clipped"], "–")
