"""The arithmetic of perf/*, without the clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from postrain.training.throughput import Throughput, performance


def test_median_seconds_and_tokens_per_second() -> None:
    found = performance([1.0, 9.0, 2.0], [100, 200, 300])
    assert found["perf/seconds"] == 2.0  # One slow update does not change the median.
    assert found["perf/tokens_per_second"] == 600 / 12
    assert 0 < found["perf/peak_memory_gib"] < 1000


def test_throughput_adds_to_the_metrics_of_the_update(trainer: Any, make_method: Callable[..., Any]) -> None:
    callback, method = Throughput(), make_method()
    callback.on_train_batch_start(trainer, method, None, 0)
    method.step(loss=1.0)
    callback.on_train_batch_end(trainer, method, None, None, 0)
    assert method.last_metrics["loss"] == 1.0
    assert method.last_metrics["perf/seconds"] >= 0
    assert all(name == "loss" or name.startswith("perf/") for name in method.last_metrics)
