"""Draws on matplotlib axes what a page shows: as an SVG that takes its colours from the page, and as a PNG beside it.

An SVG is drawn in marker colours that are then replaced by CSS variables: one picture is legible on a light and on a
dark page. matplotlib is imported when the first picture is drawn; pyplot and its global state stay out of it. What is
drawn is said by charts.py.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from postrain.runs.folder import writing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Draw = Callable[["Axes"], None]

SMALL, LARGE = (3.6, 2.0), (5.0, 3.1)
"""Inches: three of the small ones or two of the large ones stand side by side, and their letters are of one size."""
HEAD = 0.45
"""Inches over the pictures of a file, for its title."""
TITLE: dict[str, Any] = {"ha": "left", "fontsize": 13, "fontweight": "bold"}
REMEDY = "write the report elsewhere with --output DIRECTORY"

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
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
}
LETTER, WIDE_LETTER = 5.2, 5.8
"""Points that a letter of a tick takes: in a browser, and in matplotlib's own font."""


@dataclass(frozen=True)
class Picture:
    """A picture of the page with its caption; it is drawn when the page is written."""

    title: str
    about: str
    draw: Draw
    legend: Sequence[tuple[str, str, str]] = ()
    """CSS colour, name, and a value or nothing."""
    size: tuple[float, float] = SMALL

    @property
    def svg(self) -> Markup:
        """As a part of the page."""
        return svg(self.draw, label=self.title, size=self.size)


def color(index: int) -> str:
    """The CSS colour of series number `index`."""
    return f"var(--series-{index % len(SERIES)})"


def css(shade: str) -> str:
    """The CSS colour of a drawn one."""
    return VARIABLES[shade]


def svg(draw: Draw, *, label: str, size: tuple[float, float] = SMALL) -> Markup:
    """A picture for the page."""
    import matplotlib  # noqa: PLC0415 - start-up time
    from matplotlib.figure import Figure  # noqa: PLC0415 - start-up time

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size)
        figure.patch.set_alpha(0)
        axes = figure.add_axes((0.1, 0.1, 0.8, 0.8))
        axes.patch.set_alpha(0)
        draw(axes)
        _settle(axes, (0, 0, *size), LETTER)
        return _for_page(figure, label)


def write_png(path: Path, title: str, draws: Sequence[tuple[str, Draw]], *, legend: bool = True) -> None:
    """The named pictures in one file, three in a row, each with its legend; no file where there are none.

    Raises ConfigError where it cannot be written.
    """
    if not draws:
        return
    import matplotlib  # noqa: PLC0415 - start-up time
    from matplotlib.figure import Figure  # noqa: PLC0415 - start-up time

    across = min(3, len(draws))
    down = -(-len(draws) // across)
    width, height = (7.5, 4.4) if len(draws) == 1 else (4.0, 2.8)
    with matplotlib.rc_context(STYLE), writing(path, REMEDY):
        figure = Figure(figsize=(across * width, down * height + HEAD), facecolor="white")
        most = int(across * width * 9)
        shown = title if len(title) <= most else title[: most - 1] + "…"
        figure.text(0.1 / (across * width), 1 - 0.1 / (down * height + HEAD), plain(shown), va="top", **TITLE)
        for place, (name, draw) in enumerate(draws):
            axes = figure.add_axes((0.1, 0.1, 0.8, 0.8), label=str(place))
            draw(axes)
            axes.set_title(plain(name), loc="left", fontweight="bold", fontsize=10)
            if legend and len(axes.get_legend_handles_labels()[0]) > 1:
                axes.legend(frameon=False, fontsize=7, loc="best")
            row, column = divmod(place, across)
            _settle(axes, (column * width, (down - 1 - row) * height, width, height), WIDE_LETTER)
        figure.savefig(path, dpi=110)


def plain(text: str) -> str:
    """Text that matplotlib draws as it is: a dollar sign would start a formula, a leading _ hides a label."""
    return text.replace("$", r"\$").lstrip("_")


def _settle(axes: Axes, box: tuple[float, float, float, float], letter: float) -> None:
    """Puts axes into a box (left, bottom, width, height, in inches) with margins as wide as the ticks need.

    matplotlib's own layout would draw everything twice to find that out.
    """
    formatter: Any = axes.yaxis.get_major_formatter()
    low, high = sorted(axes.get_ylim())
    texts = formatter.format_ticks([tick for tick in axes.get_yticks() if low <= tick <= high])
    left = letter * max((len(text) for text in texts), default=0) + 8 + 13 * bool(axes.get_ylabel())
    bottom = 16 + 13 * bool(axes.get_xlabel())
    top = (14 if formatter.get_offset() else 6) + 18 * bool(axes.get_title(loc="left"))
    # The first number of the horizontal axis needs half its width.
    left = min(max(left, 13), box[2] * 72 * 0.6)
    across, up = axes.get_figure(root=True).get_size_inches() * 72  # type: ignore[union-attr]
    x, y, width, height = (72 * edge for edge in box)
    axes.set_position(
        ((x + left) / across, (y + bottom) / up, (width - left - 10) / across, (height - bottom - top) / up)
    )


def _for_page(figure: Figure, label: str) -> Markup:
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
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1).strip())
