"""Adds seconds per update, tokens per second and peak memory to the metrics as perf/*.

These are the only metrics that differ between a run and its repetition. Evaluation time is excluded: the clock runs
from the start of a training batch to its end, and this callback comes first.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from postrain.hardware.memory import peak_memory
from postrain.runs.method_protocol import method_of

WINDOW = 50


class Throughput(Callback):
    """Adds perf/seconds (median), perf/tokens_per_second and perf/peak_*_gib over the last WINDOW updates."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=WINDOW)
        self._tokens: deque[int] = deque(maxlen=WINDOW)
        self._started = 0.0
        self._tokens_before = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._started = time.perf_counter()
        self._tokens_before = method_of(pl_module).counters.tokens

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        method = method_of(pl_module)
        self._seconds.append(time.perf_counter() - self._started)
        self._tokens.append(method.counters.tokens - self._tokens_before)
        method.last_metrics.update(performance(list(self._seconds), list(self._tokens)))


def performance(seconds: list[float], tokens: list[int]) -> dict[str, float]:
    """The perf/* metrics; `seconds` and `tokens` have one entry per update."""
    found = {
        "perf/seconds": statistics.median(seconds),
        "perf/tokens_per_second": sum(tokens) / max(sum(seconds), 1e-9),
        "perf/peak_memory_gib": peak_memory() / 2**30,
    }
    if torch.cuda.is_available():
        found["perf/peak_gpu_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return found
