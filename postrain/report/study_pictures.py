"""What is drawn of a sweep: one metric against another or against what varies, and each setting's way to its end.

Settings along a number that varies are joined in its order; whatever else varies makes another line. Without a number
there are bars.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from postrain.evaluation.intervals import Interval
from postrain.formatting import short
from postrain.jsonl import JsonLines, number
from postrain.report.charts import Line, Spot, bars, curves, points, spans_decades
from postrain.report.folders import curves as curves_of
from postrain.report.panels import title_of
from postrain.report.pictures import LARGE, Picture, color
from postrain.report.study import SweepResult, number_that_varies
from postrain.report.study_cells import Cell
from postrain.report.values import Curve

MOST_CURVES = 4
MEANS = "mean over seeds with 95 % intervals"


def frontier(study: SweepResult) -> Picture | None:
    """The metrics that the sweep names against each other, else the deciding one against what varies."""
    if study.x and study.y and any({study.x, study.y} <= cell.values.keys() for cell in study.cells):
        return _against(study, study.x, study.y)
    metric = study.y or study.metric
    if metric is None or not any(metric in cell.values for cell in study.cells):
        return None
    along = number_that_varies(study)
    return _over(study, metric, along) if along else _bars(study, metric)


def lines(study: SweepResult, along: str | None) -> list[tuple[str, list[Cell]]]:
    """The settings by what else varies, each line in the order of the number that varies."""
    if along is None:
        return [("", list(study.cells))]
    found: dict[str, list[Cell]] = {}
    for cell in sorted(study.cells, key=lambda cell: _value(cell, along)):
        rest = (f"{key.rpartition('.')[2]}={value}" for key, value in cell.settings.items() if key != along)
        found.setdefault(" ".join(rest), []).append(cell)
    return list(found.items())


def _value(cell: Cell, key: str) -> float:
    return number(cell.settings.get(key)) or 0.0


def _against(study: SweepResult, x: str, y: str) -> Picture:
    along = number_that_varies(study)
    series = []
    for index, (name, cells) in enumerate(lines(study, along)):
        there = [cell for cell in cells if {x, y} <= cell.values.keys()]
        spots = [_spot(cell.values[x], cell.values[y], _label(cell, along)) for cell in there]
        series.append((name, index, spots))
    start = [cell for cell in study.untrained if {x, y} <= cell.values.keys()]
    series += [("", len(series), [_spot(cell.values[x], cell.values[y], cell.label)]) for cell in start]
    draw = points(series, x=_axis(x), y=_axis(y), joined=along is not None)
    about = "each point a setting, and the untrained model; mean over seeds with 95 % intervals"
    return Picture(f"{short(y)} against {short(x)}".capitalize(), about, draw, _legend(series), LARGE)


def _spot(x: Interval, y: Interval, label: str) -> Spot:
    return Spot(x.value, y.value, (x.low, x.high), (y.low, y.high), label)


def _over(study: SweepResult, metric: str, along: str) -> Picture:
    series = []
    for index, (name, cells) in enumerate(lines(study, along)):
        found = [(_value(cell, along), cell.values[metric]) for cell in cells if metric in cell.values]
        series.append((name, index, [Spot(x, y.value, None, (y.low, y.high)) for x, y in found]))
    decades = spans_decades([spot.x for _, _, spots in series for spot in spots])
    levels = [(cell.label, cell.values[metric].value) for cell in study.untrained if metric in cell.values]
    draw = points(series, x=along.rpartition(".")[2], y=_axis(metric), log_x=decades, levels=levels)
    title = f"{short(metric)} against {along.rpartition('.')[2]}".capitalize()
    return Picture(title, MEANS, draw, _legend(series), LARGE)


def _bars(study: SweepResult, metric: str) -> Picture:
    there = [cell for cell in (*study.untrained, *study.cells) if metric in cell.values]
    rows = [(_label(cell, None), _bar(cell.values[metric]), index) for index, cell in enumerate(there)]
    return Picture(short(metric).capitalize(), MEANS, bars(rows), size=LARGE)


def _bar(found: Interval) -> Spot:
    return Spot(found.value, 0, (found.low, found.high))


def _label(cell: Cell, along: str | None) -> str:
    """The value that varies, else the values of the setting."""
    if along is not None:
        return str(cell.settings.get(along))
    return " ".join(map(str, cell.settings.values())) or cell.label


def _axis(metric: str) -> str:
    return f"{short(metric)}, nats a token" if metric.endswith("kl/exact") else short(metric)


def _legend(series: Sequence[tuple[str, int, Any]]) -> tuple[tuple[str, str, str], ...]:
    return tuple((color(index), name, "") for name, index, _ in series if name)


def study_curves(study: SweepResult) -> list[Picture]:
    """The course of the sweep's metrics: the mean over seeds of each setting, and each seed thin."""
    wanted = study.shown()[:MOST_CURVES]
    courses = [[_metrics(job.folder) for job in cell.jobs if job.state != "not started"] for cell in study.cells]
    found = []
    for metric in wanted:
        drawn: list[Line] = []
        for index, (cell, jobs) in enumerate(zip(study.cells, courses, strict=True)):
            seeds = [job[metric] for job in jobs if metric in job]
            drawn += [Line("", seed, index, thin=True) for seed in seeds] if len(seeds) > 1 else []
            drawn += [Line(cell.label, mean_curve(seeds), index, measured=True)] if seeds else []
        if drawn:
            last = max(line.curve[0][-1] for line in drawn)
            found.append(Picture(*title_of(metric), curves(drawn, last), size=LARGE))
    return found


def mean_curve(seeds: Sequence[Curve]) -> Curve:
    """The mean over seeds at the updates that all of them have; of the longest one where they share none."""
    known = [dict(zip(*seed, strict=True)) for seed in seeds]
    shared = sorted(set.intersection(*(set(one) for one in known)))
    if not shared:
        return max(seeds, key=lambda seed: len(seed[0]))
    return shared, [fmean(one[update] for one in known) for update in shared]


def _metrics(folder: Path) -> dict[str, Curve]:
    return curves_of(JsonLines(folder / "metrics.jsonl").read())
