"""A page: a header and sections of blocks, rendered by templates/page.html into report.html, with files beside it."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from postrain.config.masking import hidden
from postrain.formatting import figure, short
from postrain.jsonl import atomic_write_text, plain
from postrain.report.blocks import ABOUT, Block, Facts, Group, Legend, Table, Text, card, code, empty
from postrain.report.export import TABLE_FORMATS, write_table
from postrain.report.pictures import FORMATS, REMEDY, Sheet, write_sheet
from postrain.runs.folder import writing
from postrain.runs.sessions import parts, with_changes

HERE = Path(__file__).parent
RELOAD = 5
"""Seconds between two reloads of a page, and between two writes of --watch, while a run trains."""
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
    """Kind of the folder."""
    title: str
    heading: str | Markup
    header: Sequence[Block | None]
    sections: Sequence[Section | None]
    missing: Sequence[str] = ()
    """One line for each file that is missing or could not be read."""
    sheets: Sequence[Sheet] = ()
    """Image files beside the page."""
    table: Table | None = None
    """The table that --format csv and tex write."""
    files: Mapping[str, Any] = field(default_factory=dict)
    """JSON files beside the page."""
    script: str = ""
    """Inline JavaScript; only the index of runs has it."""
    reload: int = 0
    """Seconds after which the browser reloads the page; 0 never."""


def section(title: str, *blocks: Block | None) -> Section | None:
    """The section without its empty blocks; None if only explanations are left."""
    kept = [block for block in blocks if not empty(block)]
    substantive = [block for block in kept if not isinstance(block, Legend) and getattr(block, "css", "") != ABOUT]
    return Section(title, [block for block in kept if block]) if substantive else None


def reproduction(manifest: Mapping[str, Any], path: Path) -> tuple[Block | None, ...]:
    """The command that reproduces a run, those that resumed it with other settings, and its folder."""
    command = manifest.get("reproduce")
    later = [
        block
        for one in with_changes(manifest)
        for block in (
            Text(f"After update {one['update']}, with other settings:", ABOUT),
            code(str(one["command"])),
        )
    ]
    return code(str(command)) if command else None, *later, Text(str(path), "path muted")


def resumption(skipped: str, resume: str, repeat: str | None, path: Path) -> Section | None:
    """The commands that resume or repeat a sweep or pipeline, and its folder."""
    blocks: list[Block | None] = [Text(f"Resume; {skipped}:", ABOUT), code(resume)]
    if repeat:
        blocks += [Text("Repeat everything:", ABOUT), code(repeat)]
    return section("Resume or repeat it", *blocks, Text(str(path), "path muted"))


def machine(manifest: Mapping[str, Any]) -> Group:
    """Seeds, machine, code version and packages of the manifest; all values of a run with several sessions."""
    found = [("seeds", flat(manifest.get("seeds")))]
    for name in ("hardware", "git", "versions"):
        rows = [row for part in parts(manifest, name) for row in flat(part)]
        values = {key: " → ".join(dict.fromkeys(value for other, value in rows if other == key)) for key, _ in rows}
        found.append((name, [*values.items()]))
    return Group([card(name, Facts(rows, "table")) for name, rows in found if rows])


def write_page(folder: Path, page: Page, formats: Sequence[str] = ()) -> Path:
    """Writes report.html and the files beside it; `formats` are further ones of figures (pdf, svg) and of the table
    (csv, tex). Raises ConfigError where one cannot be written."""
    target = folder / PAGE
    style = Markup((HERE / "style.css").read_text(encoding="utf-8"))
    script = Markup(page.script)
    text = _engine().get_template("page.html").render(page=page, style=style, script=script)
    with writing(target, REMEDY):
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write_text(target, hidden(text))
    for sheet in page.sheets:
        write_sheet(folder, sheet, [name for name in formats if name in FORMATS])
    for name, value in page.files.items():
        write_json(folder / name, value)
    for name in formats:
        if page.table and name in TABLE_FORMATS:
            write_table(folder, page.table, name)
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
    """A block, by the macro with the name of its class; nothing for an empty one."""
    macros = _engine().get_template("blocks.html").module
    return Markup() if empty(block) else getattr(macros, type(block).__name__.lower())(block)


def link(target: Path, page: Path) -> str:
    """The relative link from a page's folder to a file."""
    relative = os.path.relpath(target.resolve(), page.resolve())
    # A ? or # in a folder's name would end the path.
    return re.sub(r"[%?#:]", lambda found: f"%{ord(found[0]):02X}", relative.replace(os.sep, "/"))


def flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A nested record as rows of name and text; a list is one row."""
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
