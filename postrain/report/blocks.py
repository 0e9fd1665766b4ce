"""The blocks of a page, and the inline elements of their texts.

Page builders (run_page.py, sweep_page.py, ...) choose blocks; templates/blocks.html has one macro for each class, with
the same name. It escapes all text except the inline elements made here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from postrain.formatting import figure
from postrain.report.folders import STATES
from postrain.report.pictures import Entry, Picture
from postrain.report.samples import PromptSamples

ABOUT = "small muted"
ARROW = Markup('<span class="arrow" aria-label="to">→</span>')


@dataclass(frozen=True)
class Text:
    """A paragraph, or another element with text."""

    text: str | Markup
    css: str = ""
    tag: str = "p"


@dataclass(frozen=True)
class Items:
    """A list."""

    lines: Sequence[str | Markup]
    css: str = ""


@dataclass(frozen=True)
class Pictures:
    """Pictures side by side."""

    pictures: Sequence[Picture]
    large: bool = False
    about: str = ""


@dataclass(frozen=True)
class Legend:
    """Names of colours and line styles."""

    entries: Sequence[Entry]


Numbers = tuple[float, float | None, float | None, int | None]
"""A value, the ends of its interval and the number of observations, as far as they are known."""


@dataclass(frozen=True)
class Cell:
    """A value of a table."""

    text: str | Markup
    small: str = ""
    """Below it: the interval and the number of observations."""
    best: bool = False
    css: str = ""
    numbers: Numbers | None = field(default=None, compare=False)
    """The unrounded numbers, for files."""


@dataclass(frozen=True)
class Table:
    """Cells in rows, each with a name in the first column."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    about: str = ""
    card: bool = True
    words: Sequence[str] = ()
    """Columns of text, aligned left."""

    def __bool__(self) -> bool:
        return bool(self.rows) and len(self.columns) > 1


@dataclass(frozen=True)
class Facts:
    """Names and values: as a line, as a list of definitions, or as a plain table."""

    rows: Sequence[tuple[str, str]]
    form: str = "line"


@dataclass(frozen=True)
class Samples:
    """Prompts with their completions."""

    prompts: Sequence[PromptSamples]
    compare: bool = False
    """Whether scores are coloured by their change since the first completion."""


@dataclass(frozen=True)
class Group:
    """Several blocks: a card with a heading, a grid of cards, or details under a summary."""

    blocks: Sequence[Block | None]
    css: str = "grid"
    title: str | Markup = ""
    folded: bool = False


@dataclass(frozen=True)
class ListingRow:
    """A row of a listing."""

    cells: Sequence[tuple[str | Markup, str | float]]
    """Displayed content and sort key of each cell."""
    path: str
    metrics: str
    """JSON: name → values before and after."""
    kind: str
    """Rows of equal kind can be compared; empty for a row that cannot."""


@dataclass(frozen=True)
class Listing:
    """A table that index.js sorts, filters and compares rows of."""

    rows: Sequence[ListingRow]
    columns: Sequence[str]
    """The first column has the tick boxes."""
    words: Sequence[str]
    """Columns of text, aligned left."""
    command: str
    """The command that compares folders."""


Block = Text | Items | Pictures | Legend | Table | Facts | Samples | Listing | Group


def empty(block: Block | None) -> bool:
    """Whether a block has no content (its first field). A card with a heading is never empty."""
    if isinstance(block, Group):
        return (block.folded or not block.title) and all(map(empty, block.blocks))
    return not block or not getattr(block, next(iter(block.__dataclass_fields__)))


def card(title: str | Markup, *blocks: Block | None, css: str = "card") -> Group:
    """A card of blocks, with an optional heading."""
    return Group(blocks, css, title)


def details(summary: str, *blocks: Block | None, css: str = "") -> Group:
    """Collapsed blocks."""
    return Group(blocks, css, summary, folded=True)


def code(text: str, css: str = "command") -> Text:
    """Preformatted text."""
    return Text(text, css, "pre")


def about(text: str | Markup) -> Text:
    """An explanation of the blocks beside it; a section that has only explanations is left out."""
    return Text(text, ABOUT)


def note(text: str, label: str = "", tone: str = "bad") -> Text | None:
    """A warning; None without a text. `tone` is bad or warn."""
    return Text(line(bold(label), text) if label else text, f"note {tone}") if text else None


def end_reason(reason: object) -> Text | None:
    """Why a run, an evaluation, ... did not finish."""
    return note(str(reason or ""), "Why it ended.")


def estimate(value: float | None, low: float | None, high: float | None, n: int | None, *, best: bool = False) -> Cell:
    """A value, its interval unless that is unknown or has no width, and the number of observations."""
    if value is None:
        return Cell("–")
    known = low is not None and high is not None and math.isfinite(low) and math.isfinite(high) and low < high
    around = f"{figure(low)} … {figure(high)}" if known and low is not None and high is not None else ""
    numbers = (value, low if known else None, high if known else None, n)
    return Cell(figure(value), ", ".join(filter(None, (around, f"n={n}" if n else ""))), best, numbers=numbers)


def span(text: object, css: str) -> Markup:
    """Inline text of a style."""
    return Markup('<span class="{}">{}</span>').format(css, text)


def bold(text: object) -> Markup:
    """Inline bold text."""
    return Markup("<b>{}</b>").format(text)


def anchor(text: str, target: str) -> Markup:
    """An inline link."""
    return Markup('<a href="{}">{}</a>').format(target, text)


def dot(shade: str) -> Markup:
    """A dot of a CSS colour."""
    return Markup('<i style="background:{}"></i>').format(shade)


def badge(state: str) -> Markup:
    """The coloured state of a run (done, failed, ...); empty without one."""
    return span(state, f"badge {state if state in STATES else 'unknown'}") if state else Markup()


def line(*parts: str) -> Markup:
    """Inline texts, joined by spaces."""
    return Markup(" ").join(part for part in parts if part)
