"""The blocks of a page, and the inline elements of their texts.

Page builders (run_page.py, study_page.py, ...) choose blocks; templates/blocks.html has one macro for each class, named
like it. All text is escaped there, but for the inline elements made here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from postrain.formatting import figure
from postrain.report.folders import STATES
from postrain.report.pictures import Picture
from postrain.report.samples import Shown

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
    """Which colour is whose: colour, name, and a value or nothing."""

    entries: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Cell:
    """A value of a table."""

    text: str | Markup
    small: str = ""
    """Under it: its interval, how many it rests on."""
    best: bool = False
    css: str = ""


@dataclass(frozen=True)
class Table:
    """Cells in rows, each with a name in the first column."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    about: str = ""
    card: bool = True
    words: Sequence[str] = ()
    """Columns of text, which are aligned left."""

    def __bool__(self) -> bool:
        return bool(self.rows) and len(self.columns) > 1


@dataclass(frozen=True)
class Facts:
    """Names and values: as a line, as a list of definitions, or as a plain table."""

    rows: Sequence[tuple[str, str]]
    form: str = "line"


@dataclass(frozen=True)
class Samples:
    """Prompts with what was written for each."""

    shown: Sequence[Shown]
    compare: bool = False
    """Whether scores are coloured by their change since the first answer."""


@dataclass(frozen=True)
class Group:
    """Blocks that belong together: a card with a heading, a grid of cards, or what is folded away under a summary."""

    blocks: Sequence[Block | None]
    css: str = "grid"
    title: str | Markup = ""
    folded: bool = False


Block = Text | Items | Pictures | Legend | Table | Facts | Samples | Group


def empty(block: Block | None) -> bool:
    """Whether a block has nothing to show: its first field holds its content. A card has at least its heading."""
    if isinstance(block, Group):
        return (block.folded or not block.title) and all(map(empty, block.blocks))
    return not block or not getattr(block, next(iter(block.__dataclass_fields__)))


def card(title: str | Markup, *blocks: Block | None, css: str = "card") -> Group:
    """Blocks with a heading, or without one."""
    return Group(blocks, css, title)


def details(summary: str, *blocks: Block | None, css: str = "") -> Group:
    """Blocks that are folded away."""
    return Group(blocks, css, summary, folded=True)


def code(text: str, css: str = "command") -> Text:
    """Preformatted text."""
    return Text(text, css, "pre")


def about(text: str | Markup) -> Text:
    """An explanation of what stands beside it; shown with that or not at all."""
    return Text(text, ABOUT)


def note(text: str, label: str = "", tone: str = "bad") -> Text | None:
    """What must not be overlooked; None without a text. `tone` is bad or warn."""
    return Text(line(bold(label), text) if label else text, f"note {tone}") if text else None


def ended(reason: object) -> Text | None:
    """Why a run, an evaluation, ... did not come to its end."""
    return note(str(reason or ""), "Why it ended.")


def estimate(value: float | None, low: float | None, high: float | None, n: int | None, *, best: bool = False) -> Cell:
    """A value, under it its interval, where there is one of some width, and its number of observations."""
    if value is None:
        return Cell("–")
    known = low is not None and high is not None and math.isfinite(low) and math.isfinite(high) and low < high
    around = f"{figure(low)} … {figure(high)}" if known and low is not None and high is not None else ""
    return Cell(figure(value), ", ".join(filter(None, (around, f"n={n}" if n else ""))), best)


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
    """done, failed, ..., coloured; nothing for none."""
    return span(state, f"badge {state if state in STATES else 'unknown'}") if state else Markup()


def line(*parts: str) -> Markup:
    """Inline texts one after the other."""
    return Markup(" ").join(part for part in parts if part)
