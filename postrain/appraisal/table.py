"""What an evaluation says, for the console: a line for each number, a column for each model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table

from postrain.appraisal.files import Measured, gaps, has
from postrain.evaluation.measures import Estimate
from postrain.readable import figure


def table(measured: Sequence[Measured]) -> Table:
    """Every number with its 95 % interval and n; beside another model, the paired difference where there is one.

    A difference whose interval leaves 0 out stands out.
    """
    first, *others = measured
    made = Table(box=None, pad_edge=False, title="value [95 % interval]", title_justify="left", title_style="dim")
    made.add_column("measure", no_wrap=True)
    for one in measured:
        made.add_column(one.name, justify="right", no_wrap=True)
        if one is not first:
            made.add_column(
                f"{first.name} − {one.name}" if len(others) == 1 else "difference", justify="right", no_wrap=True
            )
    made.add_column("n", justify="right", no_wrap=True)
    paired = [{(name, metric): found for name, metric, found in gaps(first, other)} for other in others]
    for name, metric in rows(measured):
        cells = [said(first, name, metric)]
        for other, found in zip(others, paired, strict=True):
            cells += [
                said(other, name, metric),
                interval(found[name, metric], mark=True) if (name, metric) in found else "",
            ]
        counts = [str(one.findings[name].metrics[metric].n) for one in measured if has(one, name, metric)]
        made.add_row(f"{name}/{metric}", *cells, "/".join(dict.fromkeys(counts)))
    return made


def rows(measured: Sequence[Measured]) -> Iterator[tuple[str, str]]:
    """Every measure and metric that some model has, in order."""
    seen = {
        (name, metric): None for one in measured for name, finding in one.findings.items() for metric in finding.metrics
    }
    # A measure's lines stay together, also where the first model lacks some of them.
    order = list(dict.fromkeys(name for name, _ in seen))
    yield from sorted(seen, key=lambda row: order.index(row[0]))


def said(one: Measured, name: str, metric: str) -> str:
    """A number of a model, or nothing."""
    return interval(one.findings[name].metrics[metric]) if has(one, name, metric) else ""


def interval(found: Estimate, *, mark: bool = False) -> str:
    """A number with its interval."""
    text = f"{figure(found.value)} [{figure(found.low)}, {figure(found.high)}]".replace("[", r"\[")
    return f"[bold]{text}[/bold]" if mark and not found.low <= 0 <= found.high else text
