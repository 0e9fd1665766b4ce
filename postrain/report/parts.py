"""The sources of a mixture, and the parts of the held-out rows with metrics of their own, on the page of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from postrain.formatting import figure, short
from postrain.jsonl import number
from postrain.metrics import metric
from postrain.report import blocks
from postrain.report.folders import Run
from postrain.report.page import Section, section
from postrain.report.panels import HEADLINES, Panel, before_and_after, ends_text, titled
from postrain.report.values import Curve, mapping

COLUMNS = {"rows_train": "rows", "rows_eval": "held out"}
SHARES = {"share": "of rows", "tokens": "of tokens", "supervised": "of loss tokens"}


def part_names(run: Run) -> list[str]:
    """The parts of the held-out rows: those of the audit, and the sources that were evaluated."""
    names = dict.fromkeys([*mapping(run.data.get("held_out")), *mapping(run.data.get("sources"))])
    return [name for name in names if any(one.startswith(f"eval/{name}/") for one in run.metrics)]


def without_parts(metrics: Mapping[str, Curve], parts: Sequence[str]) -> dict[str, Curve]:
    """The metrics of all held-out rows, and those of training."""
    return {name: curve for name, curve in metrics.items() if not name.startswith(tuple(f"eval/{p}/" for p in parts))}


def metrics_of_parts(run: Run, parts: Sequence[str]) -> dict[str, list[str]]:
    """The parts that each metric is known of, by METRIC of eval/PART/METRIC; headline metrics first."""
    found: dict[str, list[str]] = {}
    for part in parts:
        for name in run.metrics:
            if name.startswith(f"eval/{part}/"):
                found.setdefault(name.removeprefix(f"eval/{part}/"), []).append(part)
    order = [name.removeprefix("eval/") for name in HEADLINES]
    return dict(sorted(found.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))


def part_panels(run: Run, parts: Sequence[str]) -> list[Panel]:
    """A panel for each metric with a curve for each part; the first one is not collapsed."""
    return [
        Panel(
            f"{titled(short(name).capitalize(), name)}, by held-out part",
            metric(f"eval/{name}").description,
            tuple(f"eval/{part}/{name}" for part in known),
            primary=index == 0,
        )
        for index, (name, known) in enumerate(metrics_of_parts(run, parts).items())
    ]


def part_section(run: Run, parts: Sequence[str]) -> Section | None:
    """Every metric of the parts before and after training."""
    rows = [
        (
            short(name),
            [_change(run, f"eval/{part}/{name}") if part in known else blocks.Cell("") for part in parts],
        )
        for name, known in metrics_of_parts(run, parts).items()
    ]
    about = "Held-out metrics of each source or file, before → after training. replay is not part of the totals."
    text = about if "replay" in parts else about.partition(" replay")[0]
    return section("Held-out rows by part", blocks.about(text), blocks.Table(("metric", *parts), rows))


def _change(run: Run, name: str) -> blocks.Cell:
    return blocks.Cell(ends_text(before_and_after(run.metrics, name)))


def source_section(run: Run) -> Section | None:
    """The rows of each source of a mixture, and its shares of what the run trained on."""
    rows = []
    for name, record in mapping(run.data.get("sources")).items():
        one, audit = mapping(record), mapping(mapping(record).get("audit"))
        counts = [blocks.Cell(f"{number(audit.get(key)) or 0:,.0f}") for key in COLUMNS]
        shares = [blocks.Cell(f"{number(one.get(key)) or 0:.1%}") for key in SHARES]
        drawn = [
            blocks.Cell(f"{number(one.get('drawn')) or 0:,.0f}"),
            blocks.Cell(figure(number(one.get("passes")) or 0)),
        ]
        dropped = ", ".join(f"{number(count) or 0:,.0f} {why}" for why, count in mapping(audit.get("dropped")).items())
        cells = [*counts, *drawn, *shares, blocks.Cell(dropped or "none")]
        rows.append((f"{name} ({audit.get('source', '')})", cells))
    columns = ("source", *COLUMNS.values(), "drawn", "passes", *SHARES.values(), "dropped")
    about = "Rows that all updates draw from each source. More than one pass: its rows repeat."
    return section("Sources", blocks.about(about), blocks.Table(columns, rows, words=("dropped",)))
