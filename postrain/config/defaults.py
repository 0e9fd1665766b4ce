"""Fills a composed config with the defaults of the constructors it names; YAML holds what differs from them.

A default stands in one place, the signature. It is filled in before references are resolved, so that ${method.updates}
finds it and config.yaml, the hash of a job and `--cfg job` show every setting.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from postrain.config.schema import TARGET, is_group, is_node, load_target, schema_of
from postrain.config.tree import is_own, settings_of
from postrain.errors import ConfigError


def complete(config: DictConfig, root: type) -> DictConfig:
    """The same config with every default; `root` is the dataclass of its top-level keys. Groups are not chosen here.

    What is wrong with it stays as it is: check.py reports it.
    """
    settings: Any = OmegaConf.to_container(config)
    groups = [name for name, key in schema_of(root).keys.items() if is_group(key.annotation)]
    return OmegaConf.create(filled(settings, root, without=groups))


def filled(settings: Mapping[str, Any], target: Callable[..., Any], *, without: Collection[str] = ()) -> dict[str, Any]:
    """The arguments of `target`, plain containers, with its defaults and those of every node in them.

    The arguments `without` a default have to be given.
    """
    defaults = {name: value for name, value in defaults_of(target).items() if name not in without}
    whole = {**defaults, **{name: _over(defaults.get(name), value) for name, value in settings.items()}}
    order = dict.fromkeys(name for name in (TARGET, *schema_of(target).keys, *whole) if name in whole)
    return {name: _filled(whole[name]) for name in order}


def defaults_of(target: Callable[..., Any]) -> dict[str, Any]:
    """The default of every argument that has one, as a config writes it; other libraries decide theirs."""
    if not is_own(target):
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
            return filled(value, load_target(value[TARGET]))
        except ConfigError:
            return value
    return {name: _filled(item) for name, item in value.items()}
