"""Every key of a config: type, range, default and description, read off signatures and the docstrings under fields.

What `postrain help`, `--help`, the JSON schema and the tables of the documentation show; nothing is written twice.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

from omegaconf import OmegaConf

from postrain.config.annotations import adapter, describe
from postrain.config.paths import config_dirs
from postrain.config.schema import TARGET, Key, is_node, is_section, load_target, schema_of
from postrain.config.tree import fill_defaults
from postrain.errors import ConfigError


@dataclass(frozen=True)
class Entry:
    """One key."""

    path: str
    key: Key
    description: str
    value: Any
    """What it is where nothing else is said, as a config writes it; None of one that has to be given."""

    def format(self) -> str:
        """Key, value and meaning."""
        return f"{self.path}={as_override_value(self.value)}\n    {describe(self.key.annotation)}. {self.description}"


def as_override_value(value: Any) -> str:
    """A value as a command line writes it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


@cache
def field_docs(target: Any) -> Mapping[str, str]:
    """The docstring under each field of a class and its bases, a subclass's own first."""
    found: dict[str, str] = {}
    for base in inspect.getmro(target) if inspect.isclass(target) else ():
        if not base.__module__.startswith("postrain.") and base is not target:
            continue
        try:
            (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        except (OSError, TypeError, SyntaxError, ValueError):  # without a source file, as made in a console
            continue
        statements = body.body if isinstance(body, ast.ClassDef) else []
        for field, below in pairwise(statements):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and _is_text(below):
                found.setdefault(field.target.id, " ".join(below.value.value.split()))  # pyright: ignore
    return found


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def entries(node: Mapping[str, Any], target: Any, path: str = "") -> Iterator[Entry]:
    """Every key of `target` and of the nodes in its settings, `node`, complete."""
    said = field_docs(target)
    for name, key in schema_of(target).keys.items():
        value = node.get(name)
        here = f"{path}{name}"
        if is_section(key.annotation) and isinstance(value, Mapping):
            yield from entries(value, key.annotation, f"{here}.")
        elif isinstance(value, Mapping) and is_node(value):
            yield Entry(here, key, said.get(name, ""), value[TARGET])
            yield from _inside(value, f"{here}.")
        else:
            yield Entry(here, key, said.get(name, ""), value)
            for item, inner in value.items() if isinstance(value, Mapping) else ():
                if is_node(inner):
                    yield from _inside(inner, f"{here}.{item}.")
                else:
                    kinds = get_args(key.annotation)
                    yield Entry(f"{here}.{item}", Key(kinds[-1] if kinds else Any, False), said.get(name, ""), inner)


def _inside(node: Mapping[str, Any], path: str) -> Iterator[Entry]:
    try:
        yield from entries(node, load_target(node[TARGET]), path)
    except ConfigError:  # reported where the config is checked
        return


def options(group: str) -> Mapping[str, Path]:
    """The options of a group with their files, the user's own first."""
    found: dict[str, Path] = {}
    for conf in config_dirs():
        for file in sorted((conf / group).glob("*.yaml")):
            found.setdefault(file.stem, file)
    return dict(sorted(found.items()))


def option(group: str, file: Path) -> dict[str, Any]:
    """What an option sets by itself: a mapping of groups to settings, its bases merged."""
    written: Any = OmegaConf.to_container(OmegaConf.load(file))
    written = written if isinstance(written, dict) else {}
    whole: Any = OmegaConf.create({})
    for base in written.pop("defaults", []):
        name, _, place = base.partition("@") if isinstance(base, str) else ("", "", "")
        if not name or name == "_self_" or (place and place != "_here_"):
            continue
        path = file.parent / f"{name}.yaml"
        if path.is_file():
            whole = OmegaConf.merge(whole, option(group, path))
    is_global = "@package _global_" in file.read_text(encoding="utf-8")
    merged: Any = OmegaConf.to_container(OmegaConf.merge(whole, written if is_global else {group: written}))
    return merged


def option_entries(group: str, file: Path) -> Iterator[Entry]:
    """Every key of an option's class."""
    node = option(group, file).get(group)
    if isinstance(node, Mapping) and is_node(node):
        target = load_target(node[TARGET])
        yield from entries(fill_defaults(node, target), target, f"{group}.")


def json_schema(groups: Mapping[str, str], root: type) -> dict[str, Any]:
    """The JSON schema of a program's config: a group is one of its options. `groups` have a description each."""
    properties: dict[str, Any] = {}
    for entry in entries(fill_defaults({}, root, without=[*groups]), root):
        if entry.path not in groups:
            properties[entry.path] = _property(entry)
    for group, description in groups.items():
        choices = {
            name: {e.path: _property(e) for e in option_entries(group, file)} for name, file in options(group).items()
        }
        forms = [{"title": f"{group}={name}", "properties": keys} for name, keys in choices.items()]
        properties[group] = {"description": description, "anyOf": forms}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "properties": properties}


def _property(entry: Entry) -> dict[str, Any]:
    return {**adapter(entry.key.annotation).json_schema(), "description": entry.description, "default": entry.value}
