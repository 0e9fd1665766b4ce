"""Resolves a model by name, for keys other than `model`: an option of that group (nano, smollm2) or a path.

Excludes options that require a path: run and local.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from postrain.config.paths import config_dirs
from postrain.config.tree import instantiate
from postrain.config.yaml_file import load_yaml
from postrain.models.sources import ModelSource, ResolvedModel, resolve_for


def resolve_by_name(key: str, name: str, expected: str) -> ResolvedModel:
    """The model that `key` names; a directory takes precedence over an option. Raises ConfigError with that key."""
    return resolve_for(key, name, f"{expected}, or one of {', '.join(options())}", source_of(name))


def source_of(name: str, **changes: Any) -> ModelSource:
    """The source of a model: an option of the group, unless a directory has the same name."""
    if name in options() and not Path(name).expanduser().exists():
        return replace(instantiate(options()[name]), **changes)
    return ModelSource(path=name, **changes)


@cache
def options() -> dict[str, Any]:
    """The options of the `model` group that do not require a path."""
    files = {file.stem: file for conf in reversed(config_dirs()) for file in sorted((conf / "model").glob("*.yaml"))}
    nodes = {name: load_yaml(file) for name, file in files.items()}
    return {name: node for name, node in nodes.items() if isinstance(node, dict) and "???" not in node.values()}
