"""Old names of config keys, groups, options, classes and metrics: they work until UNTIL and print their new name.

Applied to command lines, users' YAML, studies and the files of earlier runs. Python arguments have no aliases.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from postrain.config.old_names import (
    ARGUMENTS,
    CLASSES,
    KEYS,
    METRIC_FAMILIES,
    METRICS,
    NUMBERS,
    OPTIONS,
    SAVED_KEYS,
    STUDY,
    SYNONYMS,
    TASK,
    VALUES,
)
from postrain.errors import ConfigError

UNTIL = "0.4"
"""The first version that refuses the old names."""


@cache
def announce(old: str, new: str) -> None:
    """Prints one line on stderr, once per process."""
    print(f"note: {old} is now {new}; the old name works until version {UNTIL}", file=sys.stderr)


def metric(name: str) -> str:
    """The new name of a logged metric, for training or held-out data."""
    held_out = "eval/" if name.startswith("eval/") else ""
    bare = name.removeprefix(held_out)
    for old, new in METRIC_FAMILIES.items():
        if bare.startswith(old):
            return held_out + new + bare.removeprefix(old)
    return held_out + METRICS.get(bare, bare)


def metrics(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of metrics, such as a line of metrics.jsonl, with new names."""
    return {metric(name): value for name, value in record.items()}


def result(found: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a result.json with new names of metrics; parts of other types stay unchanged."""
    known = dict(found)
    for part in ("changes", "values"):
        if isinstance(known.get(part), Mapping):
            known[part] = metrics(known[part])
    if isinstance(known.get("metric"), str):
        known["metric"] = metric(known["metric"])
    if isinstance(known.get("headline"), list):
        known["headline"] = [metric(name) if isinstance(name, str) else name for name in known["headline"]]
    return known


def key(path: str) -> str:
    """The new path of a config key, at any depth below a renamed one; each part of it may have a new name."""
    for old, new in {**KEYS, **SYNONYMS}.items():
        if path == old or path.startswith(f"{old}."):
            path = new + path.removeprefix(old)
    return path


def override(token: str) -> str:
    """An override of the command line with new names; unchanged if it is not `KEY=VALUE`.

    Translates simple lists of values too (`a,b`). Raises ConfigError if the values of a list belong to different keys.
    """
    token = TASK.sub(_task, token)
    head, equals, text = token.partition("=")
    path = head.lstrip("+~")
    sign = head[: len(head) - len(path)]
    stage = ""
    if path.startswith("stage.") and path.count(".") >= 2:
        stage = ".".join(path.split(".")[:2]) + "."
    elif path.startswith("sweep.grid."):
        stage = "sweep.grid."
    bare = path.removeprefix(stage)
    if bare in VALUES:
        now, text = _new_values(bare, text)
        return f"{sign}{stage}{now}{equals}{text}"
    now = NUMBERS[bare] if bare in NUMBERS and re.fullmatch(r"[\d,]+|null", text) else key(bare)
    if now != bare and bare not in SYNONYMS:
        announce(bare, now)
    options = text.split(",")
    for option in options:
        if (now, option) in OPTIONS:
            announce(f"{now}={option}", f"{now}={OPTIONS[now, option]}")
    return f"{sign}{stage}{now}{equals}{','.join(OPTIONS.get((now, option), option) for option in options)}"


def _new_values(old: str, text: str) -> tuple[str, str]:
    """The new key and values for one or several values of a key in VALUES."""
    values = [value.strip("'\"") for value in text.split(",")]
    if not VALUES[old].keys() & {*values}:
        return old, text
    pairs = [VALUES[old].get(value, (old, value)) for value in values]
    texts = [f"{now}={str(value).lower()}" for now, value in pairs]
    if len({now for now, _ in pairs}) > 1:
        raise ConfigError(f"{old}={text}: these values are now {', '.join(texts)}; list values of one key only")
    now, new = pairs[0][0], ",".join(str(value).lower() for _, value in pairs)
    announce(f"{old}={text}", f"{now}={new}")
    return now, new


def _task(found: re.Match[str]) -> str:
    announce("evaluation/measure", "evaluation/task")
    return re.sub(r"\bwins\b", "win_rate", found[0].replace("measures.", "tasks.").replace("measure", "task", 1))


def defaults(entries: Sequence[Any], group: str = "") -> list[Any]:
    """A defaults list with new names of groups and options; `group` is that of its file."""
    return [_default(entry) if isinstance(entry, Mapping) else _option(str(entry), group) for entry in entries]


def _option(entry: str, group: str) -> str:
    """An entry `OPTION` or `OPTION@PACKAGE` of a defaults list."""
    option, at, package = TASK.sub(_task, entry).partition("@")
    return override(f"{group}={option}").partition("=")[2] + at + package


def _default(entry: Mapping[Any, Any]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for name, option in entry.items():
        # `override /GROUP@PACKAGE: OPTION`; the keyword and the slash are optional.
        group = re.sub(r"^(\w+ +)?/?", "", str(name))
        now, _, text = override(f"{group}={option}").partition("=")
        found[str(name).removesuffix(group) + now] = text if isinstance(option, str) else option
    return found


def config(plain: Mapping[str, Any], *, quiet: bool = False) -> dict[str, Any]:
    """A config of plain containers with new names; `quiet` prints no notes, for a config of an earlier version."""
    found = {str(name): _new_nodes(value, f"{name}.", quiet) for name, value in plain.items()}
    for old, new in {**KEYS, **SYNONYMS, **(SAVED_KEYS if quiet else {})}.items():
        if _get(found, old.split("."), ...) is not ...:
            _set(found, new.split("."), _pop(found, old.split(".")))
            if not quiet and old not in SYNONYMS:
                announce(old, new)
    for old, new in NUMBERS.items():
        if isinstance(found.get(old), int):
            found[new] = found.pop(old)
    for old, replacements in VALUES.items():
        text = _get(found, old.split("."))
        if isinstance(text, str) and text in replacements:
            _pop(found, old.split("."))
            new, value = replacements[text]
            _set(found, new.split("."), value)
            if not quiet:
                announce(f"{old}={text}", f"{new}={str(value).lower()}")
    return found


def _new_nodes(value: Any, path: str, quiet: bool) -> Any:
    """Plain containers with new paths of classes and new names of their arguments; `path` ends with a dot."""
    if isinstance(value, Mapping):
        found = {name: _new_nodes(item, f"{path}{name}.", quiet) for name, item in value.items()}
        for old, new in _arguments(found).items():
            if old in found:
                _set(found, [new], found.pop(old))
                if not quiet:
                    announce(path + old, path + new)
        return found
    if isinstance(value, list):
        return [_new_nodes(item, f"{path}{index}.", quiet) for index, item in enumerate(value)]
    if not isinstance(value, str) or value not in CLASSES:
        return value
    if not quiet:
        announce(value, CLASSES[value])
    return CLASSES[value]


def argument(path: str, plain: Mapping[str, Any]) -> str:
    """The new path of a key, if its node in the config `plain` has a class whose argument was renamed."""
    node, _, name = path.rpartition(".")
    new = _arguments(_get(plain, node.split("."))).get(name, name)
    return f"{node}.{new}" if node else new


def _arguments(node: Any) -> Mapping[str, str]:
    """The new names of arguments by their old ones, for the class of a node."""
    target = node.get("_target_") if isinstance(node, Mapping) else None
    return ARGUMENTS.get(target, {}) if isinstance(target, str) else {}


def study(node: Mapping[str, Any]) -> dict[str, Any]:
    """A study with new names; `node` is its YAML, or the sweep.yaml of an earlier session."""
    found = {STUDY.get(name, name): value for name, value in node.items()}
    for name in ("grid", "search"):
        if isinstance(found.get(name), Mapping):
            found[name] = {key(str(path)): value for path, value in found[name].items()}
    if isinstance(found.get("metric"), str):
        found["metric"] = metric(found["metric"])
    if isinstance(found.get("columns"), list | tuple):
        found["columns"] = [metric(one) if isinstance(one, str) else one for one in found["columns"]]
    if isinstance(found.get("plot"), Mapping):
        found["plot"] = {axis: metric(one) if isinstance(one, str) else one for axis, one in found["plot"].items()}
    return found


def _get(node: Any, path: Sequence[str], missing: Any = None) -> Any:
    """The value at a path; `missing` if the path does not exist."""
    for part in path:
        node = node.get(part, missing) if isinstance(node, Mapping) else missing
    return node


def _pop(node: dict[str, Any], path: Sequence[str]) -> Any:
    for part in path[:-1]:
        node[part] = node = dict(node[part])
    return node.pop(path[-1])


def _set(node: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Sets the value at a path, unless the path already has one; mappings are merged."""
    for part in path[:-1]:
        node[part] = dict(node.get(part) or {})
        node = node[part]
    there = node.get(path[-1])
    if isinstance(there, Mapping) and isinstance(value, Mapping):
        node[path[-1]] = {**value, **there}
    else:
        node.setdefault(path[-1], value)
