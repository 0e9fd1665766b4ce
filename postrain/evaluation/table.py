"""The console tables of an evaluation: a row per metric, a column per model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from textwrap import fill

from rich.table import Table
from rich.text import Text

from postrain.evaluation.estimate import Estimate
from postrain.evaluation.result_files import ModelResults, has, paired_differences

GAP = 2
"""Spaces between two columns."""
LEAST_HEADER = 12
"""Names of models are broken into lines of the width of their columns, at least of this one."""


@dataclass(frozen=True)
class Column:
    """A column of numbers; its cells are rich's markup."""

    name: str
    cells: Sequence[str]

    @property
    def width(self) -> int:
        """Characters of a line."""
        return max(LEAST_HEADER, *(Text.from_markup(cell).cell_len for cell in self.cells))


def tables(measured: Sequence[ModelResults], width: int) -> Iterator[Table]:
    """Every metric with its 95 % interval and n; with several models, also the paired differences that are known.

    One table if it has at most `width` characters, otherwise the models and then the differences, in as many tables as
    needed. With three or more models, "− B" is the first model minus B. Differences whose interval excludes 0 are bold.
    """
    first, *others = measured
    names = [*rows(measured)]
    metrics = ["/".join(row) for row in names]
    values = [Column(one.name, [cell(one, *row) for row in names]) for one in measured]
    paired = [{(name, metric): found for name, metric, found in paired_differences(first, other)} for other in others]
    differences = [
        Column(
            f"{first.name} − {other.name}" if len(others) == 1 else f"− {other.name}",
            [interval(found[row], mark=True) if row in found else "" for row in names],
        )
        for other, found in zip(others, paired, strict=True)
    ]
    counts = [
        "/".join(dict.fromkeys(str(one.results[row[0]].metrics[row[1]].n) for one in measured if has(one, *row)))
        for row in names
    ]
    fixed = max(map(len, ("metric", *metrics))) + GAP + max(map(len, ("n", *counts)))
    titles = ("value [95 % interval]", "first model minus another [95 % interval]")
    parts = [*zip(titles, (values, differences), strict=True)]
    if fixed + sum(GAP + column.width for column in (*values, *differences)) <= width:
        parts = [(titles[0], [*values, *differences])]
    for title, columns in parts:
        for some in fitting(columns, width - fixed):
            yield _table(title, metrics, some, counts)


def fitting(columns: Sequence[Column], width: int) -> Iterator[Sequence[Column]]:
    """The columns in groups of at most `width` characters, at least one in each."""
    group: list[Column] = []
    for column in columns:
        if group and sum(GAP + each.width for each in (*group, column)) > width:
            yield group
            group = []
        group.append(column)
    if group:
        yield group


def _table(title: str, metrics: Sequence[str], columns: Sequence[Column], counts: Sequence[str]) -> Table:
    made = Table(box=None, pad_edge=False, title=title, title_justify="left", title_style="dim")
    made.add_column("metric", no_wrap=True, vertical="bottom")
    for column in columns:
        # A no-break space keeps the minus with its name.
        made.add_column(fill(column.name.replace("− ", "−\u00a0"), column.width), justify="right", no_wrap=True)
    made.add_column("n", justify="right", no_wrap=True)
    for metric, *cells, count in zip(metrics, *(column.cells for column in columns), counts, strict=True):
        made.add_row(metric, *cells, count)
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
