"""Every key of a config: type, range, default and description, from signatures and the docstrings below fields.

`postrain help`, `--help`, the JSON schema and the tables of the documentation use it.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

from omegaconf import OmegaConf

from postrain.config import old_names, renamed
from postrain.config.annotations import adapter, describe
from postrain.config.paths import config_dirs
from postrain.config.schema import TARGET, Key, SuppliedArguments, is_node, is_section, load_target, schema_of
from postrain.config.tree import fill_defaults
from postrain.config.yaml_file import load_yaml
from postrain.errors import ConfigError


@dataclass(frozen=True)
class Entry:
    """One key."""

    path: str
    key: Key
    description: str
    value: Any
    """Its default as a config writes it; None for a required key."""

    def format(self) -> str:
        """Key, value, type and description."""
        return f"{self.path}={as_override_value(self.value)}\n    {describe(self.key.annotation)}. {self.description}"


def as_override_value(value: Any) -> str:
    """A value as a command line writes it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


@cache
def field_docs(target: Any) -> Mapping[str, str]:
    """The docstring below each field of a class; a subclass overrides its bases."""
    found: dict[str, str] = {}
    for base in inspect.getmro(target) if inspect.isclass(target) else ():
        if not base.__module__.startswith("postrain.") and base is not target:
            continue
        try:
            (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        except (OSError, TypeError, SyntaxError, ValueError):  # no source file, as for a class defined in a console
            continue
        statements = body.body if isinstance(body, ast.ClassDef) else []
        for field, below in pairwise(statements):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and _is_text(below):
                found.setdefault(field.target.id, " ".join(below.value.value.split()))  # pyright: ignore
    return found


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def entries(node: Mapping[str, Any], target: Any, path: str = "") -> Iterator[Entry]:
    """Every key of `target` and of its nested nodes; `node` holds its settings, including defaults."""
    docs = field_docs(target)
    for name, key in schema_of(target).keys.items():
        value = node.get(name)
        here = f"{path}{name}"
        if is_section(key.annotation) and isinstance(value, Mapping):
            yield from entries(value, key.annotation, f"{here}.")
        elif isinstance(value, Mapping) and is_node(value):
            yield Entry(here, key, docs.get(name, ""), value[TARGET])
            yield from _inside(value, f"{here}.")
        else:
            yield Entry(here, key, docs.get(name, ""), value)
            for item, inner in value.items() if isinstance(value, Mapping) else ():
                if is_node(inner):
                    yield from _inside(inner, f"{here}.{item}.")
                else:
                    kinds = get_args(key.annotation)
                    yield Entry(f"{here}.{item}", Key(kinds[-1] if kinds else Any, False), docs.get(name, ""), inner)


def _inside(node: Mapping[str, Any], path: str) -> Iterator[Entry]:
    try:
        yield from entries(node, load_target(node[TARGET]), path)
    except ConfigError:  # reported where the config is checked
        return


def options(group: str) -> Mapping[str, Path]:
    """The options of a group with their files; a user's option replaces a built-in one."""
    found: dict[str, Path] = {}
    for conf in config_dirs():
        for name in filter(None, (group, old_names.GROUPS.get(group))):
            for file in sorted((conf / name).glob("*.yaml")):
                found.setdefault(file.stem, file)
    return dict(sorted(found.items()))


@cache
def option(group: str, file: Path) -> Mapping[str, Any]:
    """The settings of an option, merged with its bases: a mapping of groups to settings; files are read once."""
    content = load_yaml(file)
    merged_bases: Any = OmegaConf.create({})
    for base in content.pop("defaults", []):
        name, _, place = base.partition("@") if isinstance(base, str) else ("", "", "")
        if not name or name == "_self_" or (place and place != "_here_"):
            continue
        path = file.parent / f"{name}.yaml"
        if path.is_file():
            merged_bases = OmegaConf.merge(merged_bases, option(group, path))
    is_global = "@package _global_" in file.read_text(encoding="utf-8")
    merged: Any = OmegaConf.to_container(OmegaConf.merge(merged_bases, content if is_global else {group: content}))
    return renamed.config(merged)


@cache
def complete_options(group: str) -> Mapping[str, Mapping[str, Any]]:
    """The settings of the options of a group that need no further key."""
    nodes = {name: option(group, file).get(group) for name, file in options(group).items()}
    return {name: node for name, node in nodes.items() if isinstance(node, dict) and "???" not in node.values()}


def supplied_arguments(roots: Iterable[Any]) -> frozenset[str]:
    """The dotted arguments of options that the run passes itself, such as optim.lr."""
    keys = [item for root in roots for item in schema_of(root).keys.items()]
    marks = [(name, mark) for name, key in keys for mark in getattr(key.annotation, "__metadata__", ())]
    return frozenset(f"{name}.{each}" for name, mark in marks if isinstance(mark, SuppliedArguments) for each in mark)


def option_entries(group: str, file: Path, *, without: Collection[str] = ()) -> Iterator[Entry]:
    """Every key of an option's class, except those in `without`."""
    node = option(group, file).get(group)
    if isinstance(node, Mapping) and is_node(node):
        target = load_target(node[TARGET])
        found = entries(fill_defaults(node, target), target, f"{group}.")
        yield from (entry for entry in found if entry.path not in without)


def json_schema(groups: Mapping[str, str], root: type) -> dict[str, Any]:
    """The JSON schema of a program's config; a group is one of its options. `groups` maps groups to descriptions."""
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
