"""The console output at the end of a run: the main held-out metrics and the verdict."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from postrain.formatting import console_table, figure
from postrain.report.changes import Change, changes, signed
from postrain.report.folders import Run, read_run
from postrain.report.verdict import verdict

MOST_ROWS = 10


def print_result(path: Path, console: Console | None = None) -> None:
    """Prints the table and the verdict of the run in a folder."""
    console, run = console or Console(highlight=False), read_run(path)
    if (table := result_table(run)).row_count:
        console.print(table)
    for line in verdict(run).lines:
        console.print(line, soft_wrap=True, markup=False)


def result_table(run: Run) -> Table:
    """The first MOST_ROWS held-out metrics; the method's headline metrics are highlighted."""
    found = changes(run)
    headline = run.result.get("headline")
    names = headline if isinstance(headline, list) else []
    listed = found[:MOST_ROWS]
    rest = len(found) - len(listed)
    title = "held-out, before → after" + (f" ({rest} more in the report)" if rest else "")
    columns = ("metric", "before", "after", "change", "95 % interval", "n")
    best = [index for index, one in enumerate(listed) if one.name in names]
    return console_table(columns, [_row(one) for one in listed], title, best)


def _row(one: Change) -> list[str]:
    interval, n = (one.why.replace("no interval", "none"), "–") if one.gap is None else (one.interval, str(one.gap.n))
    return [one.name, figure(one.before), figure(one.after), signed(one.after - one.before), interval, n]
