"""Figures on matplotlib axes: as inline SVG of a page, and as image files beside it.

An inline SVG is drawn in fixed colours that are then replaced by CSS variables, so that one figure fits a light and a
dark page. matplotlib is imported when the first figure is drawn; pyplot and its global state are not used. The kinds of
plots are in charts.py, the colours in palette.py.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from markupsafe import Markup, escape

from postrain.formatting import shortened
from postrain.report.palette import GRID, INK, MUTED, VARIABLES
from postrain.runs.folder import writing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Draw = Callable[["Axes"], None]

SMALL, LARGE = (3.6, 2.0), (5.0, 3.1)
"""Inches. Three small or two large figures fit side by side, with the same font size on screen."""
HEAD = 0.45
"""Inches above the panels of an image file, for its title."""
TITLE: dict[str, Any] = {"ha": "left", "fontsize": 13, "fontweight": "bold"}
PANEL_TITLE: dict[str, Any] = {"loc": "left", "fontsize": 10, "fontweight": "bold"}
REMEDY = "write the report elsewhere with --output DIRECTORY"

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
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
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
}
LETTER, WIDE_LETTER = 5.2, 5.8
"""Width of a character of a tick label in points: in a browser, and in matplotlib's own font."""
FORMATS = ("pdf", "svg")
"""Vector formats that a figure is also written in on request."""


class Entry(NamedTuple):
    """An entry of a legend."""

    background: str
    """CSS: the colour, or a gradient that shows the dashes of a line."""
    name: str
    value: str = ""
    line: bool = False
    """Whether the swatch is a line rather than a dot."""


@dataclass(frozen=True)
class Picture:
    """A figure of the page with its caption. It is drawn when the page is written."""

    title: str
    about: str
    draw: Draw
    legend: Sequence[Entry] = ()
    size: tuple[float, float] = SMALL

    @property
    def svg(self) -> Markup:
        """The inline SVG."""
        return svg(self.draw, label=self.title, size=self.size)


def svg(draw: Draw, *, label: str, size: tuple[float, float] = SMALL) -> Markup:
    """The inline SVG of a plot."""
    import matplotlib  # noqa: PLC0415 - start-up time
    from matplotlib.figure import Figure  # noqa: PLC0415 - start-up time

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size)
        figure.patch.set_alpha(0)
        axes = figure.add_axes((0.1, 0.1, 0.8, 0.8))
        axes.patch.set_alpha(0)
        draw(axes)
        _place(axes, (0, 0, *size), _margins(axes, LETTER))
        return _for_page(figure, label)


@dataclass(frozen=True)
class Sheet:
    """An image file: panels in rows of three, each with its legend."""

    stem: str
    """File name without its suffix."""
    title: str
    panels: Sequence[tuple[str, Draw]]
    """Title and plot of each panel."""


def write_sheet(folder: Path, sheet: Sheet, formats: Sequence[str] = ()) -> None:
    """Writes <stem>.png and the further `formats` of FORMATS; nothing for a sheet without panels.

    Axes of one column have the same left edge, axes of one row the same height. Raises ConfigError where a file cannot
    be written.
    """
    if not sheet.panels:
        return
    import matplotlib  # noqa: PLC0415 - start-up time
    from matplotlib.figure import Figure  # noqa: PLC0415 - start-up time

    across = min(3, len(sheet.panels))
    down = -(-len(sheet.panels) // across)
    width, height = (7.5, 4.4) if len(sheet.panels) == 1 else (4.0, 2.8)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(across * width, down * height + HEAD), facecolor="white")
        title = shortened(sheet.title, int(across * width * 9))
        figure.text(0.1 / (across * width), 1 - 0.1 / (down * height + HEAD), plain(title), va="top", **TITLE)
        drawn = [_panel(figure, index, *panel) for index, panel in enumerate(sheet.panels)]
        # All panels get the widest margins, so that the axes line up.
        margins = tuple(map(max, zip(*(_margins(axes, WIDE_LETTER) for axes in drawn), strict=True)))
        # Titles line up too, above the exponents of axes.
        for axes in drawn:
            axes.set_title(axes.get_title(loc="left"), y=1.0, pad=margins[2] - 14, **PANEL_TITLE)
        for index, axes in enumerate(drawn):
            row, column = divmod(index, across)
            _place(axes, (column * width, (down - 1 - row) * height, width, height), margins)
        for suffix in ("png", *formats):
            path = folder / f"{sheet.stem}.{suffix}"
            # Without a date, equal figures give equal files.
            date = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(suffix)
            with writing(path, REMEDY):
                figure.savefig(path, dpi=110, metadata=date)


def _panel(figure: Figure, index: int, title: str, draw: Draw) -> Axes:
    axes = figure.add_axes((0.1, 0.1, 0.8, 0.8), label=str(index))
    draw(axes)
    axes.set_title(plain(title), **PANEL_TITLE)
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(fontsize=7, loc="best", handlelength=2.6, edgecolor="none", facecolor="white", framealpha=0.6)
    return axes


def plain(text: str) -> str:
    """Text that matplotlib draws unchanged: a dollar sign would start a formula, a leading _ would hide a label."""
    return text.replace("$", r"\$").lstrip("_")


def _margins(axes: Axes, letter: float) -> tuple[float, float, float]:
    """The left, bottom and top margin of axes in points, as wide as ticks, labels and title need.

    matplotlib's own layout would draw everything twice to find that out.
    """
    formatter: Any = axes.yaxis.get_major_formatter()
    low, high = sorted(axes.get_ylim())
    texts = formatter.format_ticks([tick for tick in axes.get_yticks() if low <= tick <= high])
    left = letter * max((len(text) for text in texts), default=0) + 8 + 15 * bool(axes.get_ylabel())
    bottom = 16 + 13 * bool(axes.get_xlabel())
    top = (14 if formatter.get_offset() else 6) + 18 * bool(axes.get_title(loc="left"))
    # The first number of the horizontal axis needs half its width.
    return max(left, 13), bottom, top


def _place(axes: Axes, box: tuple[float, float, float, float], margins: tuple[float, ...]) -> None:
    """Puts axes into a box (left, bottom, width, height, in inches) with margins (left, bottom, top, in points)."""
    across, up = axes.get_figure(root=True).get_size_inches() * 72  # type: ignore[union-attr]
    x, y, width, height = (72 * edge for edge in box)
    left, (bottom, top) = min(margins[0], 0.6 * width), margins[1:]
    axes.set_position(
        ((x + left) / across, (y + bottom) / up, (width - left - 10) / across, (height - bottom - top) / up)
    )
    if axes.get_ylabel():
        axes.yaxis.set_label_coords(-(left - 12) / (width - left - 10), 0.5)


def _for_page(figure: Figure, label: str) -> Markup:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r'^<svg([^>]*?) width="[^"]*"', r"<svg\1", text)
    text = re.sub(r'^<svg([^>]*?) height="[^"]*"', r"<svg\1", text)
    # The style sheet sets the font; each text keeps only its size and its anchor.
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    for drawn, variable in VARIABLES.items():
        text = text.replace(drawn, variable)
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1).strip())
