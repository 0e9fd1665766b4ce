"""Converts a composed config to a typed object, and back.

`parse` checks plain containers and builds every node once; the fields of the result are the components of a run.
`settings_of` converts it back to plain containers for config.yaml, hashes, manifests and trackers.

Defaults are defined only in signatures of constructors; YAML contains only differences. `complete` fills in defaults
before references are resolved, so that ${method.updates} resolves and `--cfg job` prints every setting.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from omegaconf import DictConfig, OmegaConf

from postrain.config import renamed
from postrain.config.annotations import adapter, is_group
from postrain.config.check import check
from postrain.config.dialects import with_dialect
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
"""Keys of a session, not of the run, with the values that saved configs contain."""
SETTINGS = "_settings"
"""Attribute of every built object: the node it was built from, completed with defaults."""
SCALARS = (str, int, float, type(None))


def parse(plain: Mapping[str, Any], root: type[C]) -> C:
    """The typed config for `plain`, whose keys are fields of the dataclass `root`.

    Raises ConfigError with all problems of keys, types, ranges and missing packages, otherwise with the first error of
    a constructor.
    """
    check(plain, root)
    check_packages(plain)
    try:
        return _build(root, plain)
    except ConfigError as error:
        if (message := with_dialect(str(error), plain)) == str(error):
            raise
        raise ConfigError(message) from error


def instantiate(value: Any, annotation: Any = Any) -> Any:
    """Builds the object of a checked node, nested nodes first; likewise for containers of nodes.

    Values are converted to their annotated types: 1 to 1.0, a list to a tuple.
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
    # A function may return an object without settable attributes.
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
    """The annotation of a container's items."""
    for kind in (annotation, *get_args(annotation)):
        args = get_args(kind)
        if args and get_origin(kind) in (*MAPPINGS, *LISTS):
            return args[1] if get_origin(kind) in MAPPINGS else args[0]
    return Any


def complete(config: DictConfig, root: type) -> DictConfig:
    """The config completed with defaults; `root` is the dataclass of its top-level keys. Selects no group options."""
    plain: Any = OmegaConf.to_container(config)
    return OmegaConf.create(completed(plain, root))


def completed(plain: Mapping[str, Any], root: type) -> dict[str, Any]:
    """The same for plain containers, whose references stay unresolved.

    A class that accepts keys of another library converts its node with `translate_config` (Hardware). Invalid parts
    stay unchanged: check.py reports them.
    """
    settings = renamed.config(plain)
    groups = [name for name, key in schema_of(root).keys.items() if is_group(key.annotation)]
    for name in groups:
        translate_config = getattr(schema_of(root).keys[name].annotation, "translate_config", None)
        if translate_config and is_node(settings.get(name)):
            settings[name] = translate_config(settings[name])
    return fill_defaults(settings, root, without=groups)


def fill_defaults(
    settings: Mapping[str, Any], target: Callable[..., Any], *, without: Collection[str] = ()
) -> dict[str, Any]:
    """`settings` of `target`, plain containers, completed with its defaults and those of all nested nodes.

    The arguments in `without` get no default.
    """
    defaults = {name: value for name, value in defaults_of(target).items() if name not in without}
    whole = {**defaults, **{name: _merged(defaults.get(name), value) for name, value in settings.items()}}
    order = dict.fromkeys(name for name in (TARGET, *schema_of(target).keys, *whole) if name in whole)
    return {name: _with_defaults(whole[name]) for name in order}


def defaults_of(target: Callable[..., Any]) -> dict[str, Any]:
    """The defaults of arguments, as a config writes them; {} for constructors of other libraries."""
    if not is_dataclass(target) and not str(getattr(target, "__module__", "")).startswith("postrain."):
        return {}
    factories: dict[str, Any] = {}
    if is_dataclass(target):
        factories = {
            each.name: each.default_factory() for each in fields(target) if each.default_factory is not MISSING
        }
    defaults = {name: key.default for name, key in schema_of(target).keys.items() if not key.required}
    return {name: settings_of(factories.get(name, default)) for name, default in defaults.items()}


def _merged(default: Any, value: Any) -> Any:
    """`value` completed from a default mapping or list, unless it has a different `_target_`."""
    if isinstance(default, list) and isinstance(value, Mapping) and value.keys() <= {*map(str, range(len(default)))}:
        return [value.get(str(index), item) for index, item in enumerate(default)]  # adam_betas.0=0.8
    if not isinstance(default, Mapping) or not isinstance(value, Mapping):
        return value
    if value.get(TARGET, default.get(TARGET)) != default.get(TARGET):
        return value
    return {**default, **{name: _merged(default.get(name), item) for name, item in value.items()}}


def _with_defaults(value: Any) -> Any:
    """A value with the defaults of all nodes in it."""
    if isinstance(value, list):
        return [_with_defaults(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    if is_node(value):
        try:
            return fill_defaults(value, load_target(value[TARGET]))
        except ConfigError:
            return value
    return {name: _with_defaults(item) for name, item in value.items()}


def settings_of(value: Any) -> Any:
    """Converts a config, or a part of one, to plain containers.

    An object that `parse` did not build becomes a node with its fields; without fields, only `_target_`.
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
    return _node_of(value) if recorded is None else recorded


def _node_of(value: Any) -> dict[str, Any]:
    """The node of an object that was created in Python."""
    named = value if hasattr(value, "__qualname__") else type(value)
    node = {} if isinstance(value, Section) else {TARGET: f"{named.__module__}.{named.__qualname__}"}
    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value) if field.name in schema_of(type(value)).keys]
        node |= {name: settings_of(getattr(value, name)) for name in names}
    return node


def record(config: Section, group: str, key: str, value: Any) -> None:
    """Changes one key of a group in the settings that a parsed config is written with."""
    if (written := getattr(config, SETTINGS, None)) is not None:
        written[group] = {**written[group], key: value}


def leave_out(config: Section, group: str, key: str) -> None:
    """Removes one key of a group, which has no effect, from the settings that a config is written with."""
    written = settings_of(config)
    rest = {name: value for name, value in written[group].items() if name != key}
    object.__setattr__(config, SETTINGS, {**written, group: rest})


def replace_key(config: Section, group: str, key: str, value: Any) -> None:
    """Changes one key of a group, whose component is a frozen dataclass, in a config and in its settings."""
    object.__setattr__(config, group, replace(getattr(config, group), **{key: value}))
    record(config, group, key, value)


def settings(config: Section) -> dict[str, Any]:
    """A whole config as plain containers, with the keys of the session reset."""
    return {**settings_of(config), **SESSION}
