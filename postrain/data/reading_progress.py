"""Progress of reading and tokenizing many rows: a bar on a terminal, else a line every ten seconds."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from postrain.formatting import clock
from postrain.hardware.environment import is_first_rank

T = TypeVar("T")
MANY = 20_000
"""Fewer rows are prepared without a line."""
STEP = 2000
"""Rows between two looks at the clock."""
SECONDS = 10


def tracked(rows: Iterable[T], doing: str, total: int) -> Iterator[T]:
    """The rows, with their progress if they are many. `doing` is the beginning of the line, such as "reading rows"."""
    if total < MANY or not is_first_rank():
        yield from rows
        return
    with _display(doing, total, Console(stderr=True)) as show:
        for number, row in enumerate(rows):
            if number % STEP == 0:
                show.update(number)
            yield row
        show.update(total)


@contextmanager
def _display(doing: str, total: int, console: Console) -> Iterator[_Bar | _Lines]:
    if not console.is_terminal:
        yield _Lines(doing, total)
        return
    title = TextColumn("{task.description}", markup=False)
    with Progress(title, BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn(), console=console) as progress:
        progress.add_task(f"data: {doing}", total=total)
        yield _Bar(progress)


class _Bar:
    """A bar on a terminal."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def update(self, done: int) -> None:
        self.progress.update(self.progress.task_ids[0], completed=done)


class _Lines:
    """Lines for a file."""

    def __init__(self, doing: str, total: int) -> None:
        self.doing, self.total = doing, total
        self.started = self.printed = time.monotonic()

    def update(self, done: int) -> None:
        now = time.monotonic()
        if now - self.printed < SECONDS or not done:
            return
        self.printed = now
        left = (now - self.started) / done * (self.total - done)
        share = done / self.total
        print(f"data: {self.doing}: {done:,} of {self.total:,} ({share:.0%}), {clock(left)} left", flush=True)
