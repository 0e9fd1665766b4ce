"""A page: a header and sections of blocks, rendered by templates/page.html into report.html of a folder."""

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
from postrain.report.blocks import ABOUT, Block, Facts, Group, Legend, Text, card, code, empty
from postrain.report.pictures import REMEDY
from postrain.runs.folder import writing

HERE = Path(__file__).parent
PAGE, STATS, RESPONSES = "report.html", "evaluation_stats.json", "sample_responses.json"


@dataclass(frozen=True)
class Section:
    """A part of the page with its own heading."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A whole report."""

    kind: str
    """Which kind of folder it is of."""
    title: str
    heading: str | Markup
    header: Sequence[Block | None]
    sections: Sequence[Section | None]
    missing: Sequence[str] = ()
    """One line for each thing that is not there or could not be read."""


def section(title: str, *blocks: Block | None) -> Section | None:
    """The section without its empty blocks; None where nothing but explanations would be left."""
    kept = [block for block in blocks if not empty(block)]
    substantive = [block for block in kept if not isinstance(block, Legend) and getattr(block, "css", "") != ABOUT]
    return Section(title, [block for block in kept if block]) if substantive else None


def again(manifest: Mapping[str, Any], path: Path) -> tuple[Block | None, ...]:
    """How to repeat it, and where it lies."""
    command = manifest.get("reproduce")
    return code(str(command)) if command else None, Text(str(path), "path muted")


def machine(manifest: Mapping[str, Any]) -> Group:
    """What the manifest says about seeds, machine, code and packages."""
    found = [(name, flat(manifest.get(name))) for name in ("seeds", "hardware", "git", "versions")]
    return Group([card(name, Facts(rows, "table")) for name, rows in found if rows])


def write_page(folder: Path, page: Page) -> Path:
    """Renders report.html of a folder. Raises ConfigError where it cannot be written."""
    target = folder / PAGE
    style = Markup((HERE / "style.css").read_text(encoding="utf-8"))
    text = _engine().get_template("page.html").render(page=page, style=style)
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
    environment.globals["render"] = _render
    return environment


def _render(block: Block | None) -> Markup:
    """A block by the macro that is called like its class; nothing for an empty one."""
    macros = _engine().get_template("blocks.html").module
    return Markup() if empty(block) else getattr(macros, type(block).__name__.lower())(block)


def link(target: Path, page: Path) -> str:
    """The way from a page's folder to a file, for a browser."""
    relative = os.path.relpath(target.resolve(), page.resolve())
    # A ? or # in a folder's name would end the path.
    return re.sub(r"[%?#:]", lambda found: f"%{ord(found[0]):02X}", relative.replace(os.sep, "/"))


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
