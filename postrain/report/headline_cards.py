"""The cards at the top of a run's page: its main metrics before and after training."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from postrain.formatting import figure, short
from postrain.report import blocks
from postrain.report.changes import Change
from postrain.report.folders import Run
from postrain.report.page import Section, section
from postrain.report.panels import headlines
from postrain.report.values import is_held_out

CHANGES = "Before and after training, with the 95 % interval of the change."
HELD_OUT = "eval and gold are held-out data."
STRONG = Markup("<strong>{}</strong>")


def headline_section(run: Run, found: Sequence[Change]) -> Section | None:
    """A card for each main metric; `found` are the changes of the held-out ones."""
    selected = headlines(run.metrics)
    cards = []
    for name, before, after in selected:
        was = () if before is None else (blocks.span(figure(before), "was"), blocks.ARROW)
        value = blocks.Text(blocks.line(*was, STRONG.format(figure(after))))
        about = blocks.Text(interval_text(run, found, name), "small muted", "span")
        cards.append(blocks.Group((blocks.Text(short(name), "muted", "span"), value, about), "card headline"))
    changed = any(before is not None for _, before, _ in selected)
    held_out = any(is_held_out(name) for name, _, _ in selected)
    text = [*([CHANGES] if changed else []), *([HELD_OUT] if held_out else [])]
    return section("", blocks.Group(cards, "headlines"), blocks.about(" ".join(text)) if text else None)


def interval_text(run: Run, found: Sequence[Change], name: str) -> str:
    """The interval of the change of a metric, or why there is none."""
    updates, _ = run.metrics[name]
    if updates[0] == updates[-1]:
        return f"measured once, at update {updates[0]}"
    return next((one.interval for one in found if one.name == name), "no interval: training data")
