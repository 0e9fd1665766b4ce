"""References between the keys of a config, `${data.seed}`, in plain containers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from postrain.config.arguments import resolved

REFERENCE = re.compile(r"\$\{(\w+(?:\.\w+)*)\}")
"""A value that is a reference and nothing else."""
MISSING = "???"


def with_references(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with every reference replaced by its value. Raises ConfigError if one leads nowhere.

    References to single values are looked up here, in a hundredth of the time; OmegaConf resolves all other forms.
    """
    found = _with_values(config, config)
    return resolved(OmegaConf.create(found)) if "${" in str(found) else found


def _with_values(part: Any, whole: Mapping[str, Any]) -> Any:
    if isinstance(part, Mapping):
        return {key: _with_values(value, whole) for key, value in part.items()}
    if isinstance(part, list | tuple):
        return [_with_values(value, whole) for value in part]
    if not isinstance(part, str) or not (reference := REFERENCE.fullmatch(part)):
        return part
    found: Any = whole
    for key in reference[1].split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    unsettled = found is None or found == MISSING or isinstance(found, Mapping | list | tuple)
    return part if unsettled else found
