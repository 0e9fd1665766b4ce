"""Expands the directives of the pages in docs/ and writes the result, with the images, to a directory."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from docs.generator import code, experiments, reference
from docs.generator.reference import Logged

DOCS = Path(__file__).parent.parent
ROOT = DOCS.parent
DIRECTIVE = re.compile(r"^<!-- (?P<name>[\w-]+) ?(?P<argument>.*?) -->$", re.MULTILINE)
COPIED = (".png", ".svg", ".css", ".js")


def directives(logged: Logged) -> Mapping[str, Callable[[str], str]]:
    """Each directive: a function of its argument that returns Markdown."""
    return {
        "facts": reference.facts,
        "keys": reference.keys,
        "shared-keys": reference.shared_keys,
        "metrics": lambda method: reference.metrics_of(method, logged),
        "all-metrics": reference.all_metrics,
        "options": reference.options_of,
        "group": reference.group,
        "program": reference.program,
        "groups": reference.groups_table,
        "commands": reference.commands,
        "methods": reference.methods_table,
        "learning-rates": reference.learning_rates,
        "source": code.source,
        "docstring": code.docstring,
        "api": code.api,
        "losses": code.losses,
        "rules": code.rules,
        "experiments": experiments.experiments,
        "papers": experiments.papers,
        "recipes": experiments.recipes,
        "sweeps": experiments.sweeps,
        "file": experiments.file,
        "include": include,
    }


def include(path: str) -> str:
    """A Markdown file of the repository without its heading; links to files of docs/ are made relative to it."""
    text = (ROOT / path).read_text(encoding="utf-8")
    text = re.sub(r"\A# .*\n", "", text).replace("](docs/", "](")
    return text.strip()


def expand(text: str, logged: Logged) -> str:
    """A page with its directives replaced. Raises KeyError for a directive that does not exist."""
    known = directives(logged)
    return DIRECTIVE.sub(lambda match: known[match["name"]](match["argument"]).strip(), text)


def sources() -> list[Path]:
    """The Markdown files of docs/, relative to it."""
    return sorted(path.relative_to(DOCS) for path in DOCS.rglob("*.md"))


def write(output: Path, *, logged: Logged, finish: Callable[[str], str] = str) -> list[Path]:
    """Writes all pages and what they show; `finish` is applied to the text of each. Returns their paths."""
    shutil.rmtree(output, ignore_errors=True)
    for path in DOCS.rglob("*"):
        if path.suffix in COPIED:
            target = output / path.relative_to(DOCS)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    for page in sources():
        target = output / page
        target.parent.mkdir(parents=True, exist_ok=True)
        text = expand((DOCS / page).read_text(encoding="utf-8"), logged)
        target.write_text(finish(text), encoding="utf-8")
    return [output / page for page in sources()]
