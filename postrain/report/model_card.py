"""Adds the intervals of held-out metrics to the card of a finished run's model."""

from __future__ import annotations

from pathlib import Path

from postrain.formatting import figure
from postrain.jsonl import atomic_write_text, number
from postrain.report.changes import Change, changes, signed
from postrain.report.folders import Run, read_run

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
    """The metrics before and after training, with the 95 % interval of each change."""
    rows = [
        f"| {one.name} | {figure(one.before)} | {figure(one.after)} | {signed(one.after - one.before)} | "
        f"{one.interval} | {one.gap.n if one.gap else '–'} |"
        for one in found
    ]
    held_out = number(run.data.get("rows_eval"))
    note = f"{held_out:.0f} held-out rows; n is the number of prompts or rows of an interval.\n\n" if held_out else ""
    head = "| metric | before | after | change | 95 % interval | n |\n|---|---:|---:|---:|---|---:|\n"
    return note + head + "\n".join(rows)
