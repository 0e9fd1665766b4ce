"""Composes configs in a third of the time, by simpler forms of Hydra's internal steps; tests/test_configs.py compares
the result."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.hydra import Hydra
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf, base, flag_override, grammar_parser
from omegaconf import _utils as omegaconf_utils

CONF = Path(__file__).parent.parent / "conf"
UNCHANGED = (str(CONF), "hydra.conf", "")
"""Sources that no test changes; the last is Hydra's structured configs."""
MISSING = "???"
read = ConfigRepository.load_config
merge_in_hydra = ConfigLoaderImpl._compose_config_from_defaults_list
interpolation_map = defaults_list._create_interpolation_map
known: dict[tuple[str, str], Any] = {}
plain: dict[int, Any] = {}
"""The content of the configs in `known`, by their id."""
typed_configs: dict[tuple[tuple[str, str], ...], DictConfig] = {}
"""Hydra's own configs, by the files that were merged."""

Plain = dict[str, Any]


def load_config(self: ConfigRepository, config_path: str) -> ConfigResult | None:
    """Reads a YAML file once."""
    source = self._find_object_source(config_path, ObjectType.CONFIG)
    if source is None or source.path not in UNCHANGED:
        return read(self, config_path)
    key = source.path, config_path
    if key not in known:
        known[key] = read(self, config_path)
        plain[id(known[key].config)] = OmegaConf.to_container(known[key].config)
    return copy.copy(known[key])


def create_interpolation_map(overrides: Any, defaults: Any, self_added: bool) -> Any:
    """Lists the choices that a default may interpolate only where one does."""
    interpolated = any(not default.is_self() and default.is_interpolation() for default in defaults)
    return interpolation_map(overrides, defaults, self_added) if interpolated else None


def merge_files(self: ConfigLoaderImpl, defaults: Sequence[Any], repo: Any) -> DictConfig:
    """Merges the files as plain dictionaries, into Hydra's own typed config, which is merged once."""
    typed = [default for default in defaults if default.config_path.startswith("hydra/")]
    key = tuple((repo.load_config(default.config_path).path, default.config_path) for default in typed)
    if key not in typed_configs:
        # Hydra moves the nodes of what it reads into the result.
        typed_configs[key] = merge_in_hydra(self, typed, copy.deepcopy(repo))
    own: Plain = {}
    for default in defaults:
        if default in typed:
            continue
        found = repo.load_config(default.config_path)
        content: Any = plain.get(id(found.config)) or OmegaConf.to_container(found.config)
        package = found.header["package"] if default.package is None else default.package
        for name in reversed(package.split(".") if package else []):
            content = {name: content}
        merge(own, content)
    merged = copy.deepcopy(typed_configs[key])
    with flag_override(merged, "no_deepcopy_set_nodes", True):
        merged.merge_with(own)
    return merged


def merge(into: Plain, part: Plain) -> None:
    """Merges a config into another one, as OmegaConf does. The result shares no dictionary with `part`."""
    for key, value in part.items():
        old = into.get(key)
        if isinstance(value, dict):
            into[key] = old if isinstance(old, dict) else {}
            merge(into[key], value)
        elif value != MISSING or not isinstance(old, dict | list):
            into[key] = value


def mode_of_flags(self: Hydra, config_name: str | None, overrides: list[str]) -> None:
    """None: the flags of the command line decide between a run and a multirun. Hydra composes the config an additional
    time to read `hydra.mode`, which no file in conf/ sets."""


FASTER = [
    (Hydra, "get_mode", mode_of_flags),
    (ConfigRepository, "load_config", load_config),
    (defaults_list, "_create_interpolation_map", create_interpolation_map),
    (ConfigLoaderImpl, "_compose_config_from_defaults_list", merge_files),
    *((module, "parse", cache(grammar_parser.parse)) for module in (base, omegaconf_utils)),
]
ORIGINAL = [(owner, name, getattr(owner, name)) for owner, name, _ in FASTER]


def apply(patched: pytest.MonkeyPatch, steps: Sequence[tuple[Any, str, Any]] = FASTER) -> None:
    """Replaces Hydra's steps."""
    for owner, name, function in steps:
        patched.setattr(owner, name, function)


@contextmanager
def hydras_own() -> Iterator[None]:
    """Hydra's own steps inside the block."""
    with pytest.MonkeyPatch.context() as patched:
        apply(patched, ORIGINAL)
        yield
