"""Formats numbers, durations, metric names and tables for the console and the report."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

_TAILS = ("/total", "/exact", "/mean")


def short(name: str) -> str:
    """A metric's name in words: reward/total → reward, eval/accuracy → eval accuracy."""
    for end in _TAILS:
        name = name.removesuffix(end)
    return name.replace("/", " ").replace("_", " ")


def shortened(text: str, most: int) -> str:
    """A text of at most `most` characters; one that is cut ends with …."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def without_middle(text: str, most: int) -> str:
    """The beginning and the end of a text of more than `most` characters."""
    return text if len(text) <= most else f"{text[: most // 2]} […] {text[-(most // 2) :]}"


def figure(value: float) -> str:
    """A number with three significant digits."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1000 or size < 0.001:
        return f"{value:.2e}"
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 else 3
    return f"{value:.{digits}f}"


def with_interval(value: float, low: float | None, high: float | None) -> str:
    """0.42 [0.37, 0.47]; the value alone if its interval is not known, infinite or of no width."""
    if low is None or high is None or not -math.inf < low < high < math.inf:
        return figure(value)
    return f"{figure(value)} [{figure(low)}, {figure(high)}]"


def duration(seconds: float) -> str:
    """1.3 s, 45 ms, 2.1 min."""
    if seconds < 0.1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def clock(seconds: float) -> str:
    """00:42, 1:02:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute:02d}:{second:02d}"


def console_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None, best: Collection[int] = ()
) -> Table:
    """A table for the console; rows whose indices are in `best` are highlighted."""
    from rich.table import Table  # noqa: PLC0415 - start-up time

    table = Table(*columns, box=None, pad_edge=False, title=title, title_justify="left", title_style="bold")
    for index, row in enumerate(rows):
        table.add_row(*row, style="bold green" if index in best else None)
    return table


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: Collection[int] = ()) -> str:
    """A table in Markdown; pipes in cells are escaped, line breaks become spaces. The columns at the indices `numbers`
    are aligned to the right."""
    whole = [columns, ["---:" if index in numbers else "---" for index in range(len(columns))], *rows]
    lines = [[" ".join(text.replace("|", "\\|").split()) for text in row] for row in whole]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def available_columns(names: Iterable[str]) -> str:
    """The columns of a prompt, for the message that one is missing: `only answer, question`."""
    found = ", ".join(names)
    return f"only {found}" if found else "no further columns"
