"""A composed config as a typed tree, and back.

`parse` checks plain containers and builds every node once; from there on a config is an object whose fields are the
parts of a run. `settings_of` writes it as plain containers again: config.yaml, hashes, manifests and trackers.

A default stands in one place, the signature of a constructor; YAML holds what differs from it. `complete` fills it in
before references are resolved, so that ${method.updates} finds it and `--cfg job` shows every setting.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from omegaconf import DictConfig, OmegaConf

from postrain.config import renamed
from postrain.config.annotations import adapter, is_group
from postrain.config.check import check
from postrain.config.extras import check_packages
from postrain.config.schema import (
    LISTS,
    MAPPINGS,
    TARGET,
    Deferred,
    Key,
    Section,
    is_deferred,
    is_node,
    is_section,
    load_target,
    schema_of,
)
from postrain.errors import ConfigError

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
            return Deferred(lambda: _build(target, value), target, fill_defaults(value, target))
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
        object.__setattr__(found, SETTINGS, fill_defaults(node, target))
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


def complete(config: DictConfig, root: type) -> DictConfig:
    """The same config with every default; `root` is the dataclass of its top-level keys. Groups are not chosen here.

    A class that understands the words of another program says so with `translate_config`, node to node (Hardware).
    What is wrong with it stays as it is: check.py reports it.
    """
    plain: Any = OmegaConf.to_container(config)
    settings = renamed.config(plain)
    groups = [name for name, key in schema_of(root).keys.items() if is_group(key.annotation)]
    for name in groups:
        translate_config = getattr(schema_of(root).keys[name].annotation, "translate_config", None)
        if translate_config and is_node(settings.get(name)):
            settings[name] = translate_config(settings[name])
    return OmegaConf.create(fill_defaults(settings, root, without=groups))


def fill_defaults(
    settings: Mapping[str, Any], target: Callable[..., Any], *, without: Collection[str] = ()
) -> dict[str, Any]:
    """The arguments of `target`, plain containers, with its defaults and those of every node in them.

    The arguments `without` a default have to be given.
    """
    defaults = {name: value for name, value in defaults_of(target).items() if name not in without}
    whole = {**defaults, **{name: _over(defaults.get(name), value) for name, value in settings.items()}}
    order = dict.fromkeys(name for name in (TARGET, *schema_of(target).keys, *whole) if name in whole)
    return {name: _filled(whole[name]) for name in order}


def defaults_of(target: Callable[..., Any]) -> dict[str, Any]:
    """The default of every argument that has one, as a config writes it; other libraries decide theirs."""
    if not is_dataclass(target) and not str(getattr(target, "__module__", "")).startswith("postrain."):
        return {}
    made: dict[str, Any] = {}
    if is_dataclass(target):
        made = {each.name: each.default_factory() for each in fields(target) if each.default_factory is not MISSING}
    defaults = {name: key.default for name, key in schema_of(target).keys.items() if not key.required}
    return {name: settings_of(made.get(name, default)) for name, default in defaults.items()}


def _over(default: Any, value: Any) -> Any:
    """`value` with what it lacks of a mapping or list that is its default; not where it builds another thing."""
    if isinstance(default, list) and isinstance(value, Mapping) and value.keys() <= {*map(str, range(len(default)))}:
        return [value.get(str(index), item) for index, item in enumerate(default)]  # adam_betas.0=0.8
    if not isinstance(default, Mapping) or not isinstance(value, Mapping):
        return value
    if value.get(TARGET, default.get(TARGET)) != default.get(TARGET):
        return value
    return {**default, **{name: _over(default.get(name), item) for name, item in value.items()}}


def _filled(value: Any) -> Any:
    """A value with the defaults of every node in it."""
    if isinstance(value, list):
        return [_filled(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    if is_node(value):
        try:
            return fill_defaults(value, load_target(value[TARGET]))
        except ConfigError:
            return value
    return {name: _filled(item) for name, item in value.items()}


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
        names = [field.name for field in fields(value) if field.name in schema_of(type(value)).keys]
        node |= {name: settings_of(getattr(value, name)) for name in names}
    return node


def settings(config: Section) -> dict[str, Any]:
    """A whole config as plain containers, without what belongs to a session."""
    return {**settings_of(config), **SESSION}
