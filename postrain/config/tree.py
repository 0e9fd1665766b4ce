"""A composed config as a typed tree, and back.

`parse` checks plain containers and builds every node once; from there on a config is an object whose fields are the
parts of a run. `settings_of` writes it as plain containers again: config.yaml, hashes, manifests and trackers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from postrain.config.check import check
from postrain.config.extras import check_packages
from postrain.config.schema import (
    LISTS,
    MAPPINGS,
    TARGET,
    Deferred,
    Key,
    Section,
    adapter,
    is_deferred,
    is_node,
    is_section,
    load_target,
    schema_of,
)

C = TypeVar("C")
SESSION: Mapping[str, Any] = {"resume": None, "allow_change": False, "debug": False}
"""Keys of a session and not of the run, with the values that are kept of them."""
SETTINGS = "_settings"
"""Attribute of every built object: the node it was built from, with the defaults of what the node leaves out."""
SCALARS = (str, int, float, type(None))


def parse(plain: Mapping[str, Any], root: type[C]) -> C:
    """The config that `plain` describes, its keys the fields of the dataclass `root`.

    Raises ConfigError with every problem of keys, types, ranges and missing packages, else with the first thing that
    a constructor refuses.
    """
    check(plain, root)
    check_packages(plain)
    return _build(root, plain)


def instantiate(value: Any, annotation: Any = Any) -> Any:
    """The object that a checked node describes, nested nodes first; containers of nodes likewise.

    Values arrive as their annotated types: 1 as 1.0, a list as a tuple.
    """
    if is_node(value):
        target = load_target(value[TARGET])
        if is_deferred(annotation):
            return Deferred(lambda: _build(target, value), target, completed(value))
        return _build(target, value)
    if isinstance(value, Mapping):
        if is_section(annotation):
            return _build(annotation, value)
        return {key: instantiate(item, _item(annotation)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(instantiate(item, _item(annotation)) for item in value)
    return value


def _build(target: Callable[..., C], node: Mapping[str, Any]) -> C:
    keys = schema_of(target).keys
    arguments = {str(name): _argument(value, keys.get(name)) for name, value in node.items() if name != TARGET}
    found = target(**arguments)
    # A function may return anything, also what takes no attribute.
    with suppress(AttributeError, TypeError):
        object.__setattr__(found, SETTINGS, _completed(target, node))
    return found


def _argument(value: Any, key: Key | None) -> Any:
    if key is None:
        return instantiate(value)
    if not is_section(key.annotation):
        value = adapter(key.annotation).validate_python(value)
    return instantiate(value, key.written)


def _item(annotation: Any) -> Any:
    """The annotation of what a container holds."""
    for kind in (annotation, *get_args(annotation)):
        args = get_args(kind)
        if args and get_origin(kind) in (*MAPPINGS, *LISTS):
            return args[1] if get_origin(kind) in MAPPINGS else args[0]
    return Any


def completed(value: Any, annotation: Any = Any) -> Any:
    """Plain containers, with the defaults of every node and section in them."""
    if is_node(value):
        return _completed(load_target(value[TARGET]), value)
    if isinstance(value, Mapping):
        if is_section(annotation):
            return _completed(annotation, value)
        return {key: completed(item, _item(annotation)) for key, item in value.items()}
    return [completed(item, _item(annotation)) for item in value] if isinstance(value, list | tuple) else value


def _completed(target: Callable[..., Any], node: Mapping[str, Any]) -> dict[str, Any]:
    keys = schema_of(target).keys
    given = {name: completed(value, keys[name].written if name in keys else Any) for name, value in node.items()}
    # What other libraries leave open is theirs to decide.
    return given | (dict(_defaults(target, given)) if is_own(target) else {})


def is_own(target: Any) -> bool:
    """Whether the defaults of a class or function are part of its settings."""
    return is_dataclass(target) or str(getattr(target, "__module__", "")).startswith("postrain.")


def _defaults(target: Any, given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    declared: dict[str, Field[Any]] = {field.name: field for field in fields(target)} if is_dataclass(target) else {}
    for name, key in schema_of(target).keys.items():
        if key.required or name in given:
            continue
        field = declared.get(name)
        made = field is not None and field.default_factory is not MISSING
        default = field.default_factory() if field is not None and made else key.default  # pyright: ignore[reportCallIssue]
        yield name, settings_of(default)


def settings_of(value: Any) -> Any:
    """A config, or a part of one, as plain containers.

    An object that `parse` did not build is written by its fields; one without fields by its name alone.
    """
    if isinstance(value, SCALARS):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): settings_of(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [settings_of(item) for item in value]
    if isinstance(value, Deferred):
        return settings_of(value.value) if value.settings is None else value.settings
    recorded = getattr(value, SETTINGS, None)
    return _described(value) if recorded is None else recorded


def _described(value: Any) -> dict[str, Any]:
    """The node of an object that was made in Python."""
    named = value if hasattr(value, "__qualname__") else type(value)
    node = {} if isinstance(value, Section) else {TARGET: f"{named.__module__}.{named.__qualname__}"}
    if is_dataclass(value) and not isinstance(value, type):
        node |= {field.name: settings_of(getattr(value, field.name)) for field in fields(value) if field.init}
    return node


def settings(config: Section) -> dict[str, Any]:
    """A whole config as plain containers, without what belongs to a session."""
    return {**settings_of(config), **SESSION}
