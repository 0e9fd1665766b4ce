"""The page of a folder of runs: one row for each, sortable and filterable, with links and a comparison of ticked runs.

The page is one file without external assets. While runs train it reloads itself; `postrain report FOLDER --watch`
writes it again every few seconds.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from postrain.config.paths import command
from postrain.formatting import duration
from postrain.report import blocks
from postrain.report.folders import state_of
from postrain.report.kinds import folders
from postrain.report.page import HERE, PAGE, RELOAD, Page, link, section, write_page
from postrain.report.runs_index import Entry, read_entries
from postrain.runs.status import Status

COLUMNS = ("", "name", "kind", "model", "state", "started", "updates", "result", "time", "overrides", "folder")
LEFT = ("name", "kind", "model", "state", "result", "overrides", "folder")


def write_index(path: Path, output: Path | None = None, formats: Sequence[str] = ()) -> Path:
    """Writes report.html of a folder of runs, also of an empty one. Raises ConfigError where it cannot be written."""
    folder, entries = output or path, read_entries(path)
    rows = [_row(one, path, folder) for one in entries]
    states = Counter(one.state for one in entries)
    running = states["running"]
    watch = f"{command('report')} {path} --watch"
    empty = "No runs yet. A run appears here once it has started and the page is written again:"
    page = Page(
        kind="index",
        title=f"runs in {path.resolve().name}",
        heading=blocks.line(path.resolve().name, blocks.badge("running" if running else "")),
        header=(
            blocks.Facts([("entries", str(len(entries))), *((state, str(n)) for state, n in states.most_common())]),
            blocks.about(
                f"Written {time.strftime('%Y-%m-%d %H:%M:%S')}. While runs train, keep it current with: {watch}"
            ),
        ),
        sections=(
            section("", blocks.Text("" if entries else empty), blocks.Text("" if entries else watch, "command", "pre")),
            section("", blocks.Listing(rows, COLUMNS, LEFT, command("report"))),
        ),
        table=_table(entries),
        script=(HERE / "index.js").read_text(encoding="utf-8") if entries else "",
        reload=RELOAD if running else 0,
    )
    return write_page(folder, page, formats)


def any_running(path: Path) -> bool:
    """Whether a run, sweep, ... below a folder is running."""
    return any(state_of(Status(found / "status.json").current()) == "running" for _, found in folders(path))


def _row(one: Entry, root: Path, folder: Path) -> blocks.ListingRow:
    target = one.path / PAGE
    name = blocks.anchor(one.name, link(target, folder)) if one.has_report else one.name
    relative = str(one.path.relative_to(root))
    started = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.started)) if one.started else ""
    after = one.ends[1] if one.ends else ""
    cells = (
        (name, one.name),
        (one.kind, one.kind),
        (one.model, one.model),
        (blocks.badge(one.state), one.state),
        (started, one.started),
        (one.progress, one.progress.partition("/")[0]),
        (one.result, after),
        (duration(one.seconds) if one.seconds else "", one.seconds),
        (one.overrides, one.overrides),
        (relative, relative),
    )
    return blocks.ListingRow(cells, str(one.path), one.data, one.kind if one.comparable else "")


def _table(entries: Sequence[Entry]) -> blocks.Table:
    columns = ("name", "kind", "model", "state", "updates", "metric", "before", "after", "folder")
    rows = []
    for one in entries:
        ends = one.ends or (None, None)
        numbers = [blocks.estimate(value, None, None, None) for value in ends]
        words = [blocks.Cell(text) for text in (one.kind, one.model, one.state, one.progress, one.metric)]
        rows.append((one.name, [*words, *numbers, blocks.Cell(str(one.path))]))
    return blocks.Table(columns, rows)
