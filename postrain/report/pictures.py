"""Curves and histograms as SVG that takes its colours from the page, and the same curves as one PNG.

An SVG is drawn in marker colours that are then replaced by CSS variables: one picture is legible on a light and on a
dark page. matplotlib is imported when the first picture is drawn; pyplot and its global state stay out of it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from postrain.report.panels import Panel, smooth
from postrain.report.run_data import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_POINTS = 240
BINS = 18

# Drawn colour → CSS variable. No two may be equal, and none may be a colour matplotlib uses by itself.
INK, MUTED, GRID = "#101112", "#737475", "#d9dadb"
SERIES = ("#2f6fd1", "#d8602a", "#2a9461", "#8d5bc9", "#c23b72", "#a08a1d", "#1f93a6", "#8a5a44")
BEFORE, AFTER = "#9aa1a9", "#2f6fd2"
VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    BEFORE: "var(--before)",
    AFTER: "var(--after)",
    **{color: f"var(--series-{index})" for index, color in enumerate(SERIES)},
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "postrain",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


def curve_svg(panel: Panel, metrics: Mapping[str, Curve], updates: int) -> str:
    """One panel: each metric as a thin line with its smoothed course; held-out ones with a dot where measured."""
    return _drawn(lambda axes: _draw_curves(axes, panel, metrics, updates), size=(3.6, 2.0), label=panel.title)


def histogram_svg(title: str, before: Sequence[float], after: Sequence[float]) -> str:
    """Two distributions over each other."""
    return _drawn(lambda axes: _draw_histogram(axes, before, after), size=(3.6, 1.7), label=title)


def write_png(path: Path, title: str, panels: Sequence[Panel], metrics: Mapping[str, Curve], updates: int) -> None:
    """The panels in one picture, three in a row."""
    import matplotlib  # noqa: PLC0415 - start-up time
    from matplotlib.figure import Figure  # noqa: PLC0415 - start-up time

    rows = -(-len(panels) // 3)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 2.9 * rows), layout="constrained", facecolor="white")
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
        grid = figure.subplots(rows, min(3, len(panels)), squeeze=False).flat
        for axes, panel in zip(grid, panels, strict=False):
            _draw_curves(axes, panel, metrics, updates)
            axes.set_title(panel.title, loc="left", fontweight="bold", fontsize=10)
            if len(panel.names) > 1:
                axes.legend(frameon=False, fontsize=7, loc="best")
        for axes in list(grid):
            axes.set_axis_off()
        figure.savefig(path, dpi=110)


def color(index: int) -> str:
    """The CSS colour of the panel's series number `index`."""
    return f"var(--series-{index % len(SERIES)})"


def _drawn(draw: Any, *, size: tuple[float, float], label: str) -> str:
    import matplotlib  # noqa: PLC0415 - start-up time
    from matplotlib.figure import Figure  # noqa: PLC0415 - start-up time

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        draw(axes)
        return _page_svg(figure, label)


def _page_svg(figure: Figure, label: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r'^<svg([^>]*?) width="[^"]*"', r"<svg\1", text)
    text = re.sub(r'^<svg([^>]*?) height="[^"]*"', r"<svg\1", text)
    # The page says which font; each text names only its size and its anchor.
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    for drawn, variable in VARIABLES.items():
        text = text.replace(drawn, variable)
    return text.replace("<svg", f'<svg role="img" aria-label="{_attribute(label)}"', 1).strip()


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")


def _draw_curves(axes: Axes, panel: Panel, metrics: Mapping[str, Curve], updates: int) -> None:
    for index, name in enumerate(panel.names):
        shade = SERIES[index % len(SERIES)]
        # A dollar sign would start a formula.
        label = name.replace("$", r"\$").lstrip("_")
        xs, ys = metrics[name]
        if name.startswith(("eval/", "gold/")) or len(xs) < 8:
            axes.plot(
                xs, ys, color=shade, linewidth=1.6, marker="o", markersize=3.2, label=label, zorder=3, clip_on=False
            )
            continue
        xs, raw = thinned(xs, ys)
        _, even = thinned(metrics[name][0], smooth(ys, max(1, len(ys) // 10)))
        axes.plot(xs, raw, color=shade, linewidth=0.7, alpha=0.35)
        axes.plot(xs, even, color=shade, linewidth=1.7, label=label)
    axes.set_xlim(-0.02 * max(1, updates), max(1, updates))
    axes.locator_params(axis="y", nbins=4)
    axes.locator_params(axis="x", nbins=5, integer=True)
    axes.ticklabel_format(axis="y", scilimits=(-3, 4))


def _draw_histogram(axes: Axes, before: Sequence[float], after: Sequence[float]) -> None:
    low, high = min(*before, *after), max(*before, *after)
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = [low + (high - low) * index / BINS for index in range(BINS + 1)]
    axes.hist(before, bins=edges, color=BEFORE, alpha=0.75)
    axes.hist(after, bins=edges, color=AFTER, alpha=0.6)
    axes.locator_params(axis="y", nbins=3, integer=True)
    axes.locator_params(axis="x", nbins=6)


def thinned(xs: Sequence[int], ys: Sequence[float]) -> Curve:
    """At most a few hundred points of a long curve; the last one is kept."""
    step = -(-len(xs) // MOST_POINTS)
    index = sorted({*range(0, len(xs), step), len(xs) - 1}) if xs else []
    return [xs[i] for i in index], [ys[i] for i in index]
