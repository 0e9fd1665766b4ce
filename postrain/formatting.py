"""Numbers, times and metric names as a person reads them; for the console and the report."""

from __future__ import annotations

import math

_TAILS = ("/total", "/exact", "/mean")


def short(name: str) -> str:
    """A metric's name as a person says it: reward/total → reward, eval/accuracy → eval accuracy."""
    for end in _TAILS:
        name = name.removesuffix(end)
    return name.replace("/", " ").replace("_", " ")


def figure(value: float) -> str:
    """Three digits that mean something."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1000 or size < 0.001:
        return f"{value:.2e}"
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 else 3
    return f"{value:.{digits}f}"


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
