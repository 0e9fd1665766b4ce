"""The picture of a gradient probe: bias and SNR of each estimator, and the SNR by group size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from postrain.report.charts import DataPoint, Series, bars, points
from postrain.report.pictures import Sheet


class Point(NamedTuple):
    """A value and its interval."""

    value: float
    low: float
    high: float


class Estimator(NamedTuple):
    """What the picture shows of one estimator at one group size."""

    name: str
    group_size: int
    bias: Point
    snr: Point


def probe_sheet(found: Sequence[Estimator], size: int, title: str) -> Sheet:
    """Bars of the estimators with `size` completions of a prompt; points of those with several group sizes."""
    mine = [one for one in found if one.group_size == size]

    def rows(field: str) -> list[tuple[str, DataPoint, int]]:
        values = [(one.name, getattr(one, field)) for one in mine]
        return [(name, DataPoint(each.value, 0, (each.low, each.high)), 0) for name, each in values]

    panels = [
        ("bias", bars(rows("bias"), label="|E g/scale − g_ref| / |g_ref|")),
        ("SNR", bars(rows("snr"))),
    ]
    series: list[Series] = []
    for name in dict.fromkeys(one.name for one in mine):
        sizes = sorted((one for one in found if one.name == name), key=lambda one: one.group_size)
        if len(sizes) > 1:
            drawn = [DataPoint(one.group_size, one.snr.value, None, one.snr[1:]) for one in sizes]
            series.append((name, len(series), drawn))
    if series:
        panels.append(("SNR by group size", points(series, x="completions of a prompt", y="", log_x=True)))
    return Sheet("probe", title, panels)
