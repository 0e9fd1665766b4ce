"""The kinds of plots: curves over updates, histograms, bars with intervals, points with intervals on both axes.

Each function takes plain numbers and returns a function that draws them on matplotlib axes; pictures.py makes an inline
SVG or an image file of it. Values that cannot be drawn (nan, infinite, larger than LARGEST) are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from statistics import median as middle
from typing import TYPE_CHECKING, Any

from postrain.formatting import figure, shortened
from postrain.report.palette import DASHES, INK, MUTED, Style, color, css, shade, styles, swatch
from postrain.report.panels import Panel, smooth
from postrain.report.pictures import Draw, Entry, Picture, plain
from postrain.report.values import LARGEST, Curve, is_held_out

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_POINTS = 240
BINS = 18
LABEL_LETTERS = 26
MARKERS = "osD^vPX*"


LineStyle = str | tuple[float, tuple[float, ...]]


def line_style(dash: int) -> LineStyle:
    """matplotlib's form of a dash pattern."""
    pattern = DASHES[dash % len(DASHES)]
    return (0, pattern) if pattern else "-"


@dataclass(frozen=True)
class Line:
    """One curve of a plot."""

    name: str
    curve: Curve
    style: Style
    measured: bool = False
    """Held-out evaluations: each point has a marker, and the curve is not smoothed."""
    thin: bool = False
    """One of several curves whose mean is also drawn."""

    @property
    def shade(self) -> str:
        return shade(self.style.series)

    @property
    def dashes(self) -> LineStyle:
        return line_style(self.style.dash)

    @property
    def entry(self) -> Entry:
        """Its entry in the legend of a page."""
        return Entry(swatch(color(self.style.series), self.style.dash), self.name, line=True)


@dataclass(frozen=True)
class DataPoint:
    """A point with its intervals; an interval that is not finite is not drawn."""

    x: float
    y: float
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    label: str = ""
    """Text beside the point."""


def is_drawable(value: float | None) -> bool:
    """Whether a value can be drawn on an axis."""
    return value is not None and abs(value) < LARGEST


def lines_of(panel: Panel, metrics: Mapping[str, Curve], colors: dict[str, int] | None = None) -> list[Line]:
    """The curves of a run's panel; `colors` are those of the page's earlier panels, see `styles`."""
    return [
        Line(name, metrics[name], style, measured=is_held_out(name))
        for name, style in zip(panel.names, styles(panel.names, colors), strict=True)
    ]


def curves(lines: Sequence[Line], updates: int, label: str = "") -> Draw:
    """Training curves as a thin line with the smoothed one on it, held-out ones with markers; `label` is that of the
    vertical axis."""

    def draw(axes: Axes) -> None:
        for line in lines:
            _draw_line(axes, line)
        axes.set_xlim(-0.02 * max(1, updates), max(1, updates))
        axes.locator_params(axis="y", nbins=4)
        axes.locator_params(axis="x", nbins=5, integer=True)
        axes.ticklabel_format(axis="y", scilimits=(-3, 4))
        axes.set_xlabel("update")
        axes.set_ylabel(plain(label))

    return draw


def _draw_line(axes: Axes, line: Line) -> None:
    drawn, dash, label = line.shade, line.dashes, plain(line.name)
    xs, ys = line.curve
    if line.thin:
        xs, ys = thinned(xs, ys)
        axes.plot(xs, ys, color=drawn, linestyle=dash, linewidth=0.7, alpha=0.35)
    elif line.measured or len(xs) < 8:
        axes.plot(xs, ys, color=drawn, ls=dash, lw=1.6, marker="o", ms=3.2, label=label, zorder=3, clip_on=False)
    else:
        few, raw = thinned(xs, ys)
        _, even = thinned(xs, smooth(ys, max(1, len(ys) // 10)))
        axes.plot(few, raw, color=drawn, linewidth=0.7, alpha=0.35)
        axes.plot(few, even, color=drawn, linestyle=dash, linewidth=1.7, label=label)


Group = tuple[str, str, Sequence[float]]
"""Name, drawn colour, and at least one value."""


def histogram(groups: Sequence[Group], *, label: str = "", log_x: bool = False) -> Draw:
    """Overlaid histograms; `label` names the values."""
    low, high = (edge(edge(values) for _, _, values in groups) for edge in (min, max))
    if low == high:
        low, high = (low / 2, high * 2) if log_x else (low - 0.5, high + 0.5)
    steps = [index / BINS for index in range(BINS + 1)]
    edges = [low * (high / low) ** step if log_x else low + (high - low) * step for step in steps]

    def draw(axes: Axes) -> None:
        for index, (name, drawn, values) in enumerate(groups):
            axes.hist(values, bins=edges, color=drawn, alpha=0.75 if index == 0 else 0.6, label=plain(name))
        axes.locator_params(axis="y", nbins=3, integer=True)
        axes.set_xlabel(plain(label))
        axes.set_ylabel("count")
        if log_x:
            _by_decades(axes)
        else:
            axes.locator_params(axis="x", nbins=6)

    return draw


Bars = Sequence[tuple[str, DataPoint, int]]
"""Name, value, and series number of each bar."""


def bars(rows: Bars, *, named: bool = True, label: str = "") -> Draw:
    """Horizontal bars from 0, the first on top; the value of a bar is the `x` of its point.

    Names are left out where a legend has them. `label` is that of the horizontal axis.
    """
    drawable = [row for row in rows if is_drawable(row[1].x)]

    def draw(axes: Axes) -> None:
        for index, (_, point, series) in enumerate(drawable):
            axes.barh(index, point.x, height=0.62, color=shade(series), alpha=0.8)
            axes.errorbar(point.x, index, xerr=_error(point.x, point.x_range), color=INK, elinewidth=1, capsize=2.5)
        axes.set_yticks(range(len(drawable)), [_label(name) if named else "" for name, _, _ in drawable])
        axes.invert_yaxis()
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel(plain(label))
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")

    return draw


def bar_picture(title: str, rows: Bars, *, about: str = "", named: bool = True) -> Picture:
    """Bars for the page; a small figure where they have no names."""
    return Picture(title, about, bars(rows, named=named), size=(5.0 if named else 3.6, 0.5 + 0.28 * len(rows)))


def distribution(title: str, about: str, groups: Sequence[Group], *, median: bool = False) -> Picture:
    """A histogram with the means in its legend; with `median` those too, and a logarithmic axis where values span
    decades."""

    def entry(name: str, values: Sequence[float]) -> tuple[str, str]:
        mean = figure(fmean(values))
        return (name, f"mean {mean}, median {figure(middle(values))}") if median else (f"{name}, mean", mean)

    legend = [Entry(css(drawn), *entry(name, values)) for name, drawn, values in groups]
    draw = wide_histogram(groups, title.lower()) if median else histogram(groups, label=title.lower())
    return Picture(title, about, draw, legend, size=(3.6, 1.9))


def wide_histogram(groups: Sequence[Group], label: str = "") -> Draw:
    """A histogram, on a logarithmic axis where the values span decades."""
    values = [value for _, _, found in groups for value in found]
    return histogram(groups, label=label, log_x=spans_decades(values))


Series = tuple[str, int, Sequence[DataPoint]]
"""Name, series number, points."""


def points(
    series: Sequence[Series],
    *,
    x: str,
    y: str,
    log_x: bool = False,
    joined: bool = True,
    levels: Sequence[tuple[str, float]] = (),
) -> Draw:
    """Points with intervals on both axes; those of a series are joined in order. `levels` are named horizontal
    lines."""

    def draw(axes: Axes) -> None:
        for name, level in levels:
            if is_drawable(level):
                axes.axhline(level, color=MUTED, lw=1, ls="--")
                axes.text(1, level, _label(name), transform=axes.get_yaxis_transform(), fontsize=8, ha="right")
        for name, number, data_points in series:
            drawable = [
                point
                for point in data_points
                if is_drawable(point.x) and is_drawable(point.y) and (point.x > 0 or not log_x)
            ]
            xs, ys = [point.x for point in drawable], [point.y for point in drawable]
            if joined:
                axes.plot(xs, ys, color=shade(number), ls=line_style(max(0, number)), lw=1, alpha=0.5)
            for index, point in enumerate(drawable):
                _draw_point(axes, point, number, plain(name) if index == 0 else None)
        if log_x:
            _by_decades(axes)
        axes.set_xlabel(plain(x))
        axes.set_ylabel(plain(y))
        axes.grid(visible=True, axis="x")
        axes.margins(0.08, 0.1)

    return draw


def _by_decades(axes: Axes) -> None:
    """A logarithmic axis with plain decimal numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter  # noqa: PLC0415 - start-up time

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 100 * low else (1.0,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _draw_point(axes: Axes, point: DataPoint, number: int, label: str | None) -> None:
    x_error, y_error = _error(point.x, point.x_range), _error(point.y, point.y_range)
    style: dict[str, Any] = {"fmt": MARKERS[number % len(MARKERS)], "ms": 4.5, "color": shade(number)}
    axes.errorbar(point.x, point.y, xerr=x_error, yerr=y_error, elinewidth=1, capsize=2, label=label, **style)
    if point.label:
        text = _label(point.label)
        axes.annotate(text, (point.x, point.y), (5, 4), textcoords="offset points", fontsize=8, color=MUTED)


def _error(value: float, around: tuple[float, float] | None) -> list[list[float]] | None:
    if around is None or not all(map(is_drawable, around)):
        return None
    return [[max(0.0, value - around[0])], [max(0.0, around[1] - value)]]


def _label(text: str) -> str:
    return plain(shortened(text, LABEL_LETTERS))


def spans_decades(values: Sequence[float]) -> bool:
    """Whether values need a logarithmic axis: all positive, and the largest more than thirty times the smallest."""
    return len(values) > 1 and min(values) > 0 and math.isfinite(max(values)) and max(values) > 30 * min(values)


def thinned(xs: Sequence[int], ys: Sequence[float]) -> Curve:
    """At most a few hundred points of a long curve; the last one is kept."""
    step = -(-len(xs) // MOST_POINTS)
    index = sorted({*range(0, len(xs), step), len(xs) - 1}) if xs else []
    return [xs[i] for i in index], [ys[i] for i in index]
