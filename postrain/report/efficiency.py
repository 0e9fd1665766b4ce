"""What a run has cost: parameters learned and there, memory, time; and what training has made a model forget."""

from __future__ import annotations

from postrain.formatting import duration, figure
from postrain.jsonl import Record, number
from postrain.report.panels import before_and_after
from postrain.report.run_data import RunData

FORGETTING = "eval/forgetting/"
MOST_SECONDS = 1e11
"""Later than any run: a damaged status file."""


def efficiency(run: RunData) -> dict[str, str]:
    """What is known of a run's cost, as it is said to a person."""
    learned, there = (number(run.result.get(name)) for name in ("trainable", "parameters"))
    memory = max((peak for name in PEAKS if (peak := _highest(run, name)) is not None), default=None)
    update, speed = run.after("perf/seconds"), run.after("perf/tokens_per_second")
    found = {
        "parameters learned": _count(learned),
        "of": _count(there),
        "share learned": f"{100 * learned / there:.3g} %" if learned is not None and there else "",
        "peak memory": f"{figure(memory)} GB" if memory is not None else "",
        "an update": duration(update) if update is not None and 0 <= update < MOST_SECONDS else "",
        "tokens a second": f"{speed:.0f}" if speed is not None and abs(speed) < MOST_SECONDS else "",
        "the whole run": took(run),
    }
    return {name: text for name, text in found.items() if text}


PEAKS = ("perf/peak_memory_gb", "perf/peak_gpu_gb")


def took(run: RunData) -> str:
    """How long the run has trained."""
    return took_of(run.status) or _said(run.seconds)


def took_of(status: Record) -> str:
    """The time that a status.json knows of."""
    return _said(number(status.get("seconds")) or 0.0)


def _said(seconds: float) -> str:
    return duration(seconds) if 0 < seconds < MOST_SECONDS else ""


def forgetting(run: RunData) -> list[tuple[str, float, float]]:
    """What was measured of what the model knew before: name, before training, after it."""
    return [
        (name.removeprefix(FORGETTING), *before_and_after(curve))
        for name, curve in run.metrics.items()
        if name.startswith(FORGETTING)
    ]


def _highest(run: RunData, name: str) -> float | None:
    return max(run.metrics[name][1]) if name in run.metrics else None


def _count(value: float | None) -> str:
    """1.06 million."""
    if value is None or not 0 <= value < MOST_SECONDS * 1e3:
        return ""
    for size, name in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if value >= size:
            return f"{value / size:.3g} {name}"
    return f"{value:.0f}"
