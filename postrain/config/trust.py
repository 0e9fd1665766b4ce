"""Values that a run folder's config may set, and those that the current command line must confirm.

A run folder may come from an untrusted source and is resumed, evaluated and generated from. Its config builds objects:
`_target_` may only name classes of this package that fit their key. Keys that name code or a URL, or that grant a
permission, are marked with `Confirm` in their class; their values are rejected unless the current command line repeats
them. Leaves out the files in a model directory (models/directory.py).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, cast, get_args, get_origin

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException

from postrain.config.schema import Confirm, is_node, load_target, provides, schema_of
from postrain.errors import ConfigError
from postrain.jsonl import leaves

Item = tuple[str, str]
"""A dotted key and its value as text."""
CODE = "builds an object outside this package"
# Classes of other packages whose arguments are only numbers and names: no file, no URL, no code.
HARMLESS = re.compile(
    r"lightning\.pytorch\.callbacks\.(EarlyStopping|LearningRateMonitor|(Rich|TQDM)ProgressBar|(Rich)?ModelSummary|Timer"
    r"|DeviceStatsMonitor)|torch\.optim\.(AdamW?|Adamax|Adadelta|Adafactor|Adagrad|ASGD|NAdam|RAdam|RMSprop|Rprop|SGD)"
)
HYDRA = ("hydra", "-")
"""Beginnings of arguments that can change where Hydra imports code from: its keys and flags."""

FOLDERS = {
    "--config-dir": "--config-dir",
    "-cd": "--config-dir",
    "--config-path": "--config-path",
    "-cp": "--config-path",
}


@dataclass(frozen=True)
class RestrictedValue:
    """A value that the command line must confirm."""

    key: str
    value: Any
    effect: str

    @property
    def item(self) -> Item:
        """Key and value, for comparison with the confirmed items."""
        return self.key, str(self.value)


@dataclass(frozen=True)
class UntrustedFolder:
    """A folder from an untrusted source, and the values that the current command line confirms."""

    folder: Path
    confirmed: Collection[Item]

    def check(self, config: Mapping[str, Any], root: type, prefix: str = "") -> None:
        """Raises ConfigError with every value of the folder's `config` that is restricted and not confirmed.

        `root` is the dataclass of the top-level keys; `prefix` precedes keys on the command line (`stage.NAME.`).
        """
        self.reject(
            [one for one in restricted_values(config, root, self.confirmed) if one.item not in self.confirmed], prefix
        )

    def check_overrides(self, words: Sequence[str]) -> None:
        """Raises ConfigError for overrides and flags of the folder that change where Hydra imports code from."""
        plain = [word.lstrip("+~") for word in words]
        pairs = [word.partition("=") for word in plain if word.startswith(HYDRA)]
        found = [RestrictedValue(key, value, "changes where Hydra imports code from") for key, _, value in pairs]
        self.reject([one for one in found if one.item not in self.confirmed])

    def reject(self, found: Sequence[RestrictedValue], prefix: str = "") -> None:
        """Raises ConfigError with one line for all values found, if any."""
        if found:
            named = "; ".join(f"{prefix}{one.key}={one.value} ({one.effect})" for one in found)
            raise ConfigError(f"{self.folder} sets {named}; repeat it on the command line if you trust it")


def config_items(config: Mapping[str, Any]) -> frozenset[Item]:
    """Every value of the config that the current command line composes."""
    return frozenset((key, str(value)) for key, value in leaves("", config))


def override_items(words: Sequence[str]) -> frozenset[Item]:
    """Every value that the overrides of a command line set, with and without `stage.NAME.`; flags are items too."""
    found: set[Item] = set()
    for word in join_flags(words):
        if word.startswith("-"):
            found.add((word.partition("=")[0], word.partition("=")[2]))
            continue
        for override in _parsed(word):
            key, parts = override.key_or_group, override.key_or_group.split(".")
            keys = {key, *(".".join(parts[size:]) for size in (2, 3) if parts[0] == "stage")}
            found |= {(key, str(value)) for each in keys for key, value in leaves(each, plain_value(override.value()))}
            found.add((key, word.partition("=")[2]))
    return frozenset(found)


def join_flags(words: Sequence[str]) -> list[str]:
    """A command line with each flag and its value as one argument, directories absolute: `--config-dir=/DIRECTORY`."""
    found: list[str] = []
    for word in words:
        if found and found[-1] in FOLDERS:
            found[-1] += f"={word}"
        else:
            found.append(word)
    return [_absolute(word) if word.startswith("-") else word for word in found]


def _absolute(word: str) -> str:
    flag, _, value = word.partition("=")
    return f"{FOLDERS[flag]}={Path(value).resolve()}" if flag in FOLDERS else word


def restricted_values(
    config: Mapping[str, Any], root: type, confirmed: Collection[Item] | None = None
) -> Iterator[RestrictedValue]:
    """Every value of `config` that needs confirmation; code is imported only for those in `confirmed` (None: all)."""
    keys = schema_of(root).keys
    for name, value in config.items():
        yield from _values(str(name), value, keys[name].annotation if name in keys else None, confirmed)


def package_class(path: Any) -> type | None:
    """The class of this package, or a harmless one of another, at a dotted path; None for others, which are not
    imported."""
    if isinstance(path, str) and HARMLESS.fullmatch(path):
        return cast("type", load_target(path))
    if not isinstance(path, str) or not path.startswith("postrain."):
        return None
    try:
        found = load_target(path)
    except ConfigError:
        return None
    return found if isinstance(found, type) and found.__module__.startswith("postrain.") else None


def _values(key: str, value: Any, annotation: Any, confirmed: Collection[Item] | None) -> Iterator[RestrictedValue]:
    """The restricted values in `value`, whose key has this type; None for an unknown type."""
    kinds, marks = _flat(annotation)
    inside = Annotated[Any, marks[0]] if marks else None
    plain = not isinstance(value, Mapping | list | tuple)
    if marks and plain and value not in (None, False) and not marks[0].harmless(value):
        yield RestrictedValue(key, value, marks[0].effect)
    if isinstance(value, Mapping) and is_node(value):
        yield from _node(key, value, kinds, confirmed)
    elif isinstance(value, Mapping):
        inner = next((kind for kind in kinds if hasattr(kind, "__dataclass_fields__")), None)
        known = schema_of(inner).keys if inner else {}
        for name, item in value.items():
            each = known[name].annotation if name in known else _element(kinds, Mapping) or inside
            yield from _values(f"{key}.{name}", item, each, confirmed)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _values(f"{key}[{index}]", item, _element(kinds, Sequence) or inside, confirmed)


def _node(
    key: str, node: Mapping[str, Any], kinds: Sequence[Any], confirmed: Collection[Item] | None
) -> Iterator[RestrictedValue]:
    target, own = node["_target_"], package_class(node["_target_"])
    wanted = [kind for kind in kinds if isinstance(kind, type) and kind is not Any]
    if own is None or not any(provides(own, kind) for kind in wanted):
        expected = " or ".join(kind.__name__ for kind in wanted)
        other = f"is not a {expected}" if expected else "builds an object where none is expected"
        effect = CODE if own is None else other
        yield RestrictedValue(f"{key}._target_", target, effect)
        if confirmed is not None and (f"{key}._target_", str(target)) not in confirmed:
            return
    keys = schema_of(load_target(target)).keys
    for name, value in node.items():
        if not str(name).startswith("_"):
            yield from _values(f"{key}.{name}", value, keys[name].annotation if name in keys else None, confirmed)


def _flat(annotation: Any) -> tuple[list[Any], list[Confirm]]:
    """The alternatives of a type, and its Confirm marks."""
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        kinds, marks = _flat(inner)
        return kinds, [*(each for each in metadata if isinstance(each, Confirm)), *marks]
    if get_origin(annotation) in (Union, UnionType):
        parts = [_flat(each) for each in get_args(annotation)]
        return [kind for kinds, _ in parts for kind in kinds], [mark for _, marks in parts for mark in marks]
    return [annotation], []


def _element(kinds: Sequence[Any], of: type) -> Any:
    """The type of the items of a mapping or list; None if unknown."""
    for kind in kinds:
        origin, args = get_origin(kind), get_args(kind)
        if isinstance(origin, type) and issubclass(origin, of) and args:
            return args[1] if of is Mapping else args[0]
    return None


def _parsed(word: str) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides([word])
    except HydraException:  # reported where the command line is parsed
        return []


def plain_value(value: Any) -> Any:
    """The value of an override as plain containers, without quotes."""
    if isinstance(value, dict):
        return {str(plain_value(name)): plain_value(item) for name, item in value.items()}
    if isinstance(value, list):
        return [plain_value(item) for item in value]
    return value.text if isinstance(value, QuotedString) else value
