"""Reads YAML files of run folders, and checks those of users: both may come from other people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

# The parsers of libyaml, five times faster; wheels of PyYAML have them, builds without libyaml do not.
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

MAX_NODES = 1_000_000
"""Values that a file may hold with its aliases replaced by copies. Ten lines of nested aliases can hold billions."""


class TooManyAliases(yaml.YAMLError):
    """The aliases of a YAML text stand for more than MAX_NODES values."""


def load_yaml(path: Path) -> Any:
    """The content of a YAML file as plain containers.

    Raises OSError, YAMLError, OmegaConfBaseException, ValueError or RecursionError.
    """
    check_aliases(path.read_text(encoding="utf-8"))
    return OmegaConf.to_container(OmegaConf.load(path))


def check_aliases(text: str) -> None:
    """Raises TooManyAliases if a YAML text holds more than MAX_NODES values with copies in place of its aliases."""
    if "&" not in text or "*" not in text:
        return
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]
    for event in yaml.parse(text, Loader=Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, 0))
            continue
        if isinstance(event, yaml.AliasEvent):
            anchor, size = None, sizes.get(event.anchor or "", 1)
        elif isinstance(event, yaml.ScalarEvent):
            anchor, size = event.anchor, 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, inner = open_nodes.pop()
            size = inner + 1
        else:
            continue
        if anchor:
            sizes[anchor] = size
        parent, total = open_nodes[-1]
        open_nodes[-1] = (parent, total + size)
        if total + size > MAX_NODES:
            raise TooManyAliases(f"its aliases stand for more than {MAX_NODES:,} values")
