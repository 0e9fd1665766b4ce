"""The progress line of a run; without a terminal, at most twenty lines per run.

    ppo · nano  update 37/100  reward 0.42  kl 0.031  length 24.1  1.3 s/update · 00:42 left

Replaces Lightning's progress bar (`enable_progress_bar=False`), which counts epochs and batches instead of updates.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from postrain.formatting import clock, duration, figure, short
from postrain.runs.method_protocol import MethodLike, method_of

LINES = 20


class ProgressLine(Callback):
    """Shows the progress of a run; `title` is the prefix, such as "ppo · nano"."""

    def __init__(self, title: str, console: Console | None = None) -> None:
        self.title = title
        self.console = console or Console(highlight=False)
        self._bar: Progress | None = None
        self._latest: dict[str, float] = {}
        self._started = 0.0
        self._first = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        method = method_of(pl_module)
        self._started, self._first = time.perf_counter(), method.counters.updates
        if trainer.is_global_zero and self.console.is_terminal:
            title = TextColumn("{task.description}", style="bold", markup=False)
            text = TextColumn("{task.fields[tail]}", markup=False)
            self._bar = Progress(title, BarColumn(bar_width=24), text, console=self.console, refresh_per_second=4)
            self._bar.add_task(self.title, total=method.updates, completed=self._first, tail="")
            self._bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero:
            return
        method = method_of(pl_module)
        metrics = method.last_metrics
        self._latest.update({name: metrics[name] for name in method.headline if name in metrics})
        done = method.counters.updates
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.update(task, completed=done, tail=self._tail(method))
        elif is_printed(done, method.updates, self._first):
            self.console.print(f"{self.title}  {self._tail(method)}", soft_wrap=True, markup=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _tail(self, method: MethodLike) -> str:
        done = method.counters.updates
        pace = (time.perf_counter() - self._started) / max(1, done - self._first)
        numbers = headline_text(method.headline, self._latest)
        return progress_text(done, method.updates, numbers, pace)


def is_printed(done: int, total: int, first: int = 0) -> bool:
    """Whether a line is printed after update `done`: the first, the last, and at most eighteen in between."""
    every = max(1, math.ceil(total / (LINES - 2)))
    return done == first + 1 or done == total or done % every == 0


def progress_text(done: int, total: int, numbers: str, pace: float) -> str:
    """The text after the title: update, headline metrics, seconds per update (`pace`), time left."""
    time_left = f"{duration(pace)}/update · {clock(pace * (total - done))} left"
    return "  ".join(part for part in (f"update {done}/{total}", numbers, time_left) if part)


def headline_text(names: Sequence[str], metrics: Mapping[str, float]) -> str:
    """The named metrics that have a value, with short names."""
    return "  ".join(f"{short(name)} {figure(metrics[name])}" for name in names if name in metrics)
