"""Resolves a model by name, for keys other than `model`: an option of that group (nano, smollm2) or a path.

Excludes options that require a path: run and local.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from postrain.config.reference import complete_options
from postrain.config.tree import instantiate
from postrain.models.sources import ModelSource, ResolvedModel, resolve_for


def resolve_by_name(key: str, name: str, expected: str) -> ResolvedModel:
    """The model that `key` names; a directory takes precedence over an option. Raises ConfigError with that key."""
    return resolve_for(key, name, f"{expected}, or one of {', '.join(complete_options('model'))}", source_of(name))


def source_of(name: str, **changes: Any) -> ModelSource:
    """The source of a model: an option of the group, unless a directory has the same name."""
    option = complete_options("model").get(name)
    if option is not None and not Path(name).expanduser().exists():
        return replace(instantiate(option), **changes)
    return ModelSource(path=name, **changes)
