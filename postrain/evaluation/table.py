"""The console table of an evaluation: a row per metric, a column per model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table

from postrain.evaluation.estimate import Estimate
from postrain.evaluation.result_files import ModelResults, has, paired_differences


def table(measured: Sequence[ModelResults]) -> Table:
    """Every metric with its 95 % interval and n; with several models, also the paired differences that are known.

    With three or more models, "− B" is the first model minus B. Differences whose interval excludes 0 are bold.
    """
    first, *others = measured
    made = Table(box=None, pad_edge=False, title="value [95 % interval]", title_justify="left", title_style="dim")
    made.add_column("metric", no_wrap=True)
    differences = [f"{first.name} − {other.name}" if len(others) == 1 else f"− {other.name}" for other in others]
    for name in (*(one.name for one in measured), *differences, "n"):
        made.add_column(name, justify="right", no_wrap=True)
    paired = [{(name, metric): found for name, metric, found in paired_differences(first, other)} for other in others]
    for row in rows(measured):
        gap = [interval(found[row], mark=True) if row in found else "" for found in paired]
        counts = [str(one.results[row[0]].metrics[row[1]].n) for one in measured if has(one, *row)]
        cells = [cell(one, *row) for one in measured]
        made.add_row("/".join(row), *cells, *gap, "/".join(dict.fromkeys(counts)))
    return made


def rows(measured: Sequence[ModelResults]) -> Iterator[tuple[str, str]]:
    """Every task and metric that any model has, in order."""
    seen = {
        (name, metric): None for one in measured for name, result in one.results.items() for metric in result.metrics
    }
    # Keep the metrics of a task together, also if the first model lacks some of them.
    order = list(dict.fromkeys(name for name, _ in seen))
    yield from sorted(seen, key=lambda row: order.index(row[0]))


def cell(one: ModelResults, name: str, metric: str) -> str:
    """A formatted metric of a model; empty if it has none."""
    return interval(one.results[name].metrics[metric]) if has(one, name, metric) else ""


def interval(found: Estimate, *, mark: bool = False) -> str:
    """A value with its interval as rich's markup."""
    text = str(found).replace("[", r"\[")
    return f"[bold]{text}[/bold]" if mark and not found.low <= 0 <= found.high else text
