"""What all pages share: the template engine, pictures with their captions, a value in a table, the name of a file.

Leaves out what a page shows: run_page.py, comparison_page.py, study_page.py and the others.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from postrain.config.masking import hidden
from postrain.formatting import figure, short
from postrain.jsonl import atomic_write_text, plain
from postrain.report.pictures import REMEDY, SMALL, Draw, svg
from postrain.runs.folder import writing

HERE = Path(__file__).parent
PAGE, STATS, RESPONSES = "report.html", "evaluation_stats.json", "sample_responses.json"


@dataclass(frozen=True)
class Picture:
    """A picture of the page with its caption."""

    title: str
    about: str
    svg: Markup
    legend: tuple[tuple[str, str, str], ...] = ()
    """CSS colour, name, and a value or nothing."""


@dataclass(frozen=True)
class Cell:
    """A value of a table."""

    text: str
    small: str = ""
    """Said under it: its interval, how many it rests on."""
    best: bool = False


def picture(
    title: str,
    about: str,
    draw: Draw,
    legend: Sequence[tuple[str, str, str]] = (),
    size: tuple[float, float] = SMALL,
) -> Picture:
    """Draws it."""
    return Picture(title, about, svg(draw, label=title, size=size), tuple(legend))


def write_page(folder: Path, template: str, values: Mapping[str, Any]) -> Path:
    """Renders a template into report.html of a folder. Raises ConfigError where it cannot be written."""
    style = Markup((HERE / "style.css").read_text(encoding="utf-8"))
    text = _engine().get_template(template).render(style=style, **values)
    target = folder / PAGE
    with writing(target, REMEDY):
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write_text(target, hidden(text))
    return target


def write_json(path: Path, value: Any) -> None:
    """Raises ConfigError where it cannot be written."""
    with writing(path, REMEDY):
        atomic_write_text(path, json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n")


@cache
def _engine() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": figure, "short": short}
    return environment


def link(target: Path, page: Path) -> str:
    """The way from a page's folder to a file, for a browser."""
    way = os.path.relpath(target.resolve(), page.resolve())
    # A ? or # in a folder's name would end the path.
    return re.sub(r"[%?#:]", lambda found: f"%{ord(found[0]):02X}", way.replace(os.sep, "/"))


def estimate(value: float | None, low: float | None, high: float | None, n: int | None, *, best: bool = False) -> Cell:
    """A value, under it its interval, where there is one of some width, and its number of observations."""
    if value is None:
        return Cell("–")
    known = low is not None and high is not None and math.isfinite(low) and math.isfinite(high) and low < high
    around = f"{figure(low)} … {figure(high)}" if known and low is not None and high is not None else ""
    return Cell(figure(value), ", ".join(filter(None, (around, f"n={n}" if n else ""))), best)


def flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A nested record as name and text; lists of plain values stay together."""
    if isinstance(value, dict):
        rows = ((f"{prefix} {name}".strip().replace("_", " "), item) for name, item in value.items())
        return [row for name, item in rows for row in flat(item, name)]
    if value is None or value in ("", [], {}):
        return []
    if isinstance(value, list):
        return [(prefix, ", ".join(map(_text, value)))]
    return [(prefix, _text(value))]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return figure(value) if not math.isfinite(value) or value != round(value) else f"{value:.0f}"
    return re.sub(r"\s+", " ", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
