"""Composes configs in half the time, by caches of Hydra's internal steps; tests/test_configs.py compares the result."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra._internal import defaults_list
from hydra._internal.config_repository import ConfigRepository
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult
from omegaconf import grammar_parser

CONF = Path(__file__).parent.parent / "conf"
UNCHANGED = (str(CONF), "hydra.conf")
"""Sources whose files no test changes."""


def apply(patched: pytest.MonkeyPatch) -> None:
    """Replaces the steps: interpolations are parsed once, YAML files are read once, and the choices that a default may
    interpolate are listed only where one does."""
    parse = cache(grammar_parser.parse)
    for name in ("omegaconf.base", "omegaconf._utils"):
        patched.setattr(f"{name}.parse", parse)
    read, known = ConfigRepository.load_config, {}

    def load_config(self: ConfigRepository, config_path: str) -> ConfigResult | None:
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is None or source.path not in UNCHANGED:
            return read(self, config_path)
        key = source.path, config_path
        if key not in known:
            known[key] = read(self, config_path)
        found = copy.copy(known[key])
        found.config = copy.deepcopy(found.config)
        return found

    create = defaults_list._create_interpolation_map

    def create_interpolation_map(overrides: Any, defaults: Any, self_added: bool) -> Any:
        interpolated = any(not default.is_self() and default.is_interpolation() for default in defaults)
        return create(overrides, defaults, self_added) if interpolated else None

    patched.setattr(ConfigRepository, "load_config", load_config)
    patched.setattr(defaults_list, "_create_interpolation_map", create_interpolation_map)
