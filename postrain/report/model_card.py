"""Adds the intervals of held-out metrics to the card of a finished run's model."""

from __future__ import annotations

from pathlib import Path

from postrain.evaluation.estimate import Interval
from postrain.formatting import figure, markdown_table
from postrain.jsonl import atomic_write_text, number
from postrain.report.changes import Change, changes, interval_after, signed
from postrain.report.folders import Run, read_run
from postrain.report.samples import last

HEADING = "Held-out results"


def complete_card(path: Path) -> None:
    """Replaces the table of README.md in the model folder of a run; does nothing without them."""
    readme, run = path / "model" / "README.md", read_run(path)
    if not readme.is_file() or not (found := changes(run)):
        return
    # Imported here: the report reads folders without the libraries of models.
    from postrain.models.card import with_section  # noqa: PLC0415

    text = readme.read_text(encoding="utf-8")
    atomic_write_text(readme, with_section(text, HEADING, held_out_table(run, found)))


def held_out_table(run: Run, found: list[Change]) -> str:
    """The metrics before and after training, with the 95 % intervals of the value after it and of the change."""
    samples = last(run.samples)
    rows = [_cells(one, interval_after(run, samples, one.name)) for one in found]
    held_out = number(run.data.get("rows_eval"))
    note = f"{held_out:.0f} held-out rows; n is the number of prompts or rows of an interval.\n\n" if held_out else ""
    columns = ("metric", "before", "after", "95 % interval", "change", "95 % interval", "n")
    return note + markdown_table(columns, rows, numbers=(1, 2, 4, 6))


def _cells(one: Change, after: tuple[Interval, int] | None) -> list[str]:
    around = f"{figure(after[0].low)} … {figure(after[0].high)}" if after else "–"
    n = one.gap.n if one.gap else after[1] if after else "–"
    change = signed(one.after - one.before)
    return [one.name, figure(one.before), figure(one.after), around, change, one.interval, str(n)]
