"""Metrics of the training loop: speed, memory and counters."""

from __future__ import annotations

from postrain.metrics import POSITIVE, declare

declare("perf/seconds", "median over the last updates", unit="s", direction="min", title="Seconds per update")
declare(
    "perf/tokens_per_second",
    "mean over the last updates",
    unit="tokens/s",
    direction="max",
    bounds=POSITIVE,
    title="Tokens per second",
)
declare("perf/peak_*", "GiB", unit="GiB", direction="min", bounds=POSITIVE, title="Peak memory")
declare("update", "number of the update", bounds=POSITIVE)
declare("time", "when the update ended", unit="s", bounds=POSITIVE)
