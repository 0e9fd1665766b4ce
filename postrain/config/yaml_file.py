"""Reads and writes YAML files of run folders, and checks those of users: both may come from other people.

The parser and the writer are those of libyaml with the scalars of OmegaConf (1e-5 is a number, 2024-01-01 is text), ten
times as fast as OmegaConf's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import yaml
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader

# Wheels of PyYAML have libyaml, builds without it do not.
Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

MAX_NODES = 1_000_000
"""Values that a file may hold with its aliases replaced by copies. Ten lines of nested aliases can hold billions."""
MAX_DEPTH = 500
"""Levels of nesting. libyaml's loader calls itself for each and does not check the stack."""
FLOAT, NULL, STRING = (f"tag:yaml.org,2002:{name}" for name in ("float", "null", "str"))
TYPES = ("null", "bool", "int", "float", "binary", "str", "seq", "map")
"""The tags that a config may contain."""


class TooLarge(yaml.YAMLError):
    """A YAML text stands for more than MAX_NODES values or is nested deeper than MAX_DEPTH."""


class ConfigLoader(Loader):
    """Reads what OmegaConf reads, and refuses a repeated key as it does."""

    yaml_implicit_resolvers = get_yaml_loader().yaml_implicit_resolvers
    yaml_constructors: ClassVar = {
        tag: construct
        for tag, construct in Loader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in TYPES
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == NULL or (key.tag == STRING and key.value in seen):
                problem = f"found duplicate key {key.value}" if key.tag == STRING else "found a key that is null"
                raise yaml.constructor.ConstructorError(
                    "while constructing a mapping", node.start_mark, problem, key.start_mark
                )
            if key.tag == STRING:
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class ConfigDumper(Dumper):
    """Quotes the strings that OmegaConf would read as something else, and writes equal values out each time."""

    yaml_implicit_resolvers: ClassVar = {
        first: [*found, *(pair for pair in ConfigLoader.yaml_implicit_resolvers.get(first, []) if pair[0] == FLOAT)]
        for first, found in {**dict.fromkeys(".0123456789+-", ()), **Dumper.yaml_implicit_resolvers}.items()
    }

    def ignore_aliases(self, data: Any) -> bool:
        return True


def load_yaml(path: Path) -> Any:
    """The content of a YAML file as plain containers; {} for an empty one.

    Raises OSError, YAMLError, OmegaConfBaseException or ValueError.
    """
    text = path.read_text(encoding="utf-8")
    check_size(text)
    found = yaml.load(text, ConfigLoader)
    if not isinstance(found, dict | list | None):
        raise ValueError(f"expected keys and values, got {type(found).__name__}")
    if "$" in text or "\\" in text:
        OmegaConf.create(found)  # Raises an error for an interpolation that cannot be read.
    return {} if found is None else found


def dump_yaml(value: Any) -> str:
    """The text from which `load_yaml` reads `value`, plain containers in their order."""
    return yaml.dump(value, Dumper=ConfigDumper, sort_keys=False, allow_unicode=True)


def check_size(text: str) -> None:
    """Raises TooLarge if a YAML text is nested too deep, or holds too many values with copies in place of its aliases,
    and YAMLError if it is not YAML."""
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]
    for event in yaml.parse(text, Loader=Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, 0))
            if len(open_nodes) > MAX_DEPTH:
                raise TooLarge(f"it is nested deeper than {MAX_DEPTH} levels")
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
            raise TooLarge(f"its aliases stand for more than {MAX_NODES:,} values")
