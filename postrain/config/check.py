"""Checks a composed config against the signatures of its constructors, before tree.py builds it.

One error reports all problems, a line each: unknown key, missing key, wrong type, value out of range, target that
cannot be imported. Leaves out problems that only a run can find (missing files, a model that does not fit the data).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError

from postrain.config.annotations import LARGE, NODE, adapter, describe
from postrain.config.foreign_keys import suggest_key
from postrain.config.masking import masked
from postrain.config.schema import (
    MAPPINGS,
    TARGET,
    Schema,
    SuppliedArguments,
    abbreviate,
    is_node,
    is_section,
    load_target,
    provides,
    schema_of,
)
from postrain.errors import ConfigError
from postrain.jsonl import is_list, leaves
from postrain.suggestions import suggestion

MISSING = "???"


@dataclass(frozen=True)
class Problem:
    """A problem of one key. As a text it is the line of an error message."""

    path: str
    text: str
    """What was expected, and the remedy."""
    kind: Literal["value", "unknown key", "missing", "no class"] = "value"
    """`no class` is a component without `_target_`, such as a group without an option."""

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


# Added to the message about a wrong value.
REMEDIES = {
    "debug": "true shows tracebacks; for a short trial use method.updates=3 evaluation=quick",
    "trainer._target_": "a run creates its Trainer; for options of Lightning's Trainer write lightning.pytorch.Trainer",
    "trainer.precision": "fp16 gives NaN on a CPU and loses the small log-ratios these methods need; use bf16-mixed",
    "data": "an option for your own file, conf/data/NAME.yaml, begins with `defaults: [jsonl, _self_]`",
    "optim.lr": "method.learning_rate",
    "optim.weight_decay": "method.weight_decay",
}


def check(config: Mapping[str, Any], root: type) -> None:
    """Raises one ConfigError with every problem of `config`, plain containers; its top-level keys are fields of `root`.

    A field of `root` whose type is a Section has no `_target_`.
    """
    if problems := list(problems_of(config, root)):
        raise ConfigError("\n".join(map(str, problems)))


def problems_of(config: Mapping[str, Any], root: type) -> Iterator[Problem]:
    """The problems that `check` reports."""
    known = [*_root_keys(root), *_known_keys(config)]
    yield from _problems("", config, root, known)
    if TARGET in config:
        yield Problem(TARGET, "unknown key; only the value of a group has it, as in method._target_", "unknown key")


def check_objects(**objects: Any) -> None:
    """Raises one ConfigError with every invalid setting of dataclasses created in Python, named by config keys.

    The keyword is the first part of the key: check_objects(method=...). Nested objects are not checked.
    """
    problems = [
        problem
        for path, value in objects.items()
        if is_dataclass(value)
        for name, key in schema_of(type(value)).keys.items()
        if NODE not in describe(key.annotation) and getattr(value, name, key.default) is not key.default
        for problem in _value_problems(f"{path}.{name}", getattr(value, name), key.annotation, ())
    ]
    if problems:
        raise ConfigError("\n".join(map(str, problems)))


def check_arguments(function: Callable[..., Any], **values: Any) -> None:
    """Raises one ConfigError with every value that does not fit the annotation of the function's argument."""
    keys = schema_of(function).keys
    problems = [
        line for name, value in values.items() for line in _value_problems(name, value, keys[name].annotation, ())
    ]
    if problems:
        raise ConfigError("\n".join(map(str, problems)))


def _settings(node: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The constructor arguments of a node, without `_target_`."""
    return ((str(name), value) for name, value in node.items() if name != TARGET)


def _problems(
    path: str,
    node: Mapping[str, Any],
    target: Callable[..., Any],
    known: Sequence[str],
    supplied: Collection[str] = (),
) -> Iterator[Problem]:
    """All problems of `node` as arguments of `target`; the run passes the arguments `supplied` itself."""
    schema = schema_of(target)
    for name, value in _settings(node):
        here = f"{path}{name}"
        if name in supplied:
            yield Problem(here, "set by the run" + f"; set {REMEDIES.get(here)}" * (here in REMEDIES))
        elif name in schema.keys:
            yield from _value_problems(here, value, schema.keys[name].annotation, known)
        elif schema.open:
            yield from _nested_problems(here, value, known)
        else:
            yield from _unknown_problems(path, name, value, schema, known)
    for name, key in schema.keys.items():
        if key.required and name not in node and name not in supplied:
            yield Problem(f"{path}{name}", f"missing; expected {describe(key.annotation)}", "missing")


def _value_problems(path: str, value: Any, annotation: Any, known: Sequence[str]) -> Iterator[Problem]:
    if value == MISSING:
        yield Problem(path, f"required; write {path}=...; expected {describe(annotation)}")
    elif isinstance(value, Mapping) and is_section(annotation):
        yield from _problems(f"{path}.", value, annotation, known)
        if TARGET in value:
            yield Problem(f"{path}.{TARGET}", f"unknown key; {path} is not built from a class", "unknown key")
    elif isinstance(value, Mapping) and not is_node(value) and (items := _non_nodes(value, annotation)):
        others = [name for name in value if name not in items]
        for name, item in items.items():
            there = f"available: {', '.join(others)}" if others else ""
            hint = suggestion(name, others, there, prefix=f"{path}.")
            got = abbreviate(masked(item, name))
            yield Problem(f"{path}.{name}", f"expected {describe(get_args(annotation)[1])}, got {got}{hint}")
    elif not accepts(annotation, value):
        large = isinstance(value, int) and abs(value) > LARGE
        remedy = f"; {REMEDIES[path]}" if path in REMEDIES else _quoting_hint(path, value, annotation)
        no_class = isinstance(value, Mapping) and NODE in describe(annotation)
        got = abbreviate(masked(value, path)) + f" without {TARGET}" * no_class
        text = f"expected {describe(annotation, limits=large)}, got {got}{remedy}"
        yield Problem(path, text, "no class" if no_class else "value")
    elif is_node(value):
        yield from _node_problems(path, value, annotation, known)
    else:
        yield from _nested_problems(path, value, known)


def accepts(annotation: Any, value: Any) -> bool:
    """Whether a value from YAML has this type."""
    try:
        adapter(annotation).validate_python(value)
    except ValidationError:
        return False
    return True


def _non_nodes(value: Mapping[str, Any], annotation: Any) -> dict[str, Any]:
    """The items of a mapping to nodes that are not nodes; empty if the annotation is not a mapping to nodes."""
    of_nodes = get_origin(annotation) in MAPPINGS and describe(get_args(annotation)[1]).startswith(NODE)
    return {name: item for name, item in value.items() if not is_node(item)} if of_nodes else {}


def _quoting_hint(path: str, value: Any, annotation: Any) -> str:
    """How to write a number as text, or a text as a list, if these were expected."""
    if isinstance(value, str) and accepts(annotation, [value]):
        return f"; write '{path}=[{value}]'"
    is_text = isinstance(value, int | float) and accepts(annotation, str(value))
    return f"; for text write {path}='\"{abbreviate(value)}\"'" if is_text else ""


def _nested_problems(path: str, value: Any, known: Sequence[str]) -> Iterator[Problem]:
    """The problems of all nodes in `value`, including itself."""
    if is_node(value):
        yield from _node_problems(path, value, Any, known)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _nested_problems(f"{path}.{name}", item, known)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _nested_problems(f"{path}[{index}]", item, known)


def _node_problems(path: str, node: Mapping[str, Any], annotation: Any, known: Sequence[str]) -> Iterator[Problem]:
    """All problems of a node at a key of type `annotation`."""
    try:
        target = load_target(node[TARGET])
        marks = [each for each in getattr(annotation, "__metadata__", ()) if isinstance(each, SuppliedArguments)]
        problems = list(_problems(f"{path}.", node, target, known, marks[0] if marks else ()))
    except ConfigError as problem:
        yield Problem(f"{path}.{TARGET}", str(problem))
        return
    if provides(target, annotation):
        yield from problems
    else:
        remedy = f"; {REMEDIES[f'{path}.{TARGET}']}" if f"{path}.{TARGET}" in REMEDIES else ""
        yield Problem(f"{path}.{TARGET}", f"expected {describe(annotation)}, got {node[TARGET]}{remedy}")


def _unknown_problems(path: str, name: str, value: Any, schema: Schema, known: Sequence[str]) -> Iterator[Problem]:
    """A message for an unknown key, or for each leaf of an unknown section, with the closest known key."""
    if name.startswith("_"):
        text = f"unknown key; of Hydra's own keys only {TARGET} is used here"
        yield Problem(f"{path}{name}", text, "unknown key")
        return
    for leaf, _ in leaves(f"{path}{name}", value, is_leaf=lambda item: is_list(item) or not item or is_node(item)):
        similar = _similar(path, name, leaf, schema, known)
        fallback = f"did you mean {' or '.join(similar)}?" if similar else f"known keys: {', '.join(schema.keys)}"
        text = f"unknown key; {suggest_key(leaf, known.__contains__) or fallback}"
        yield Problem(leaf, text, "unknown key")


def _similar(path: str, name: str, leaf: str, schema: Schema, known: Sequence[str]) -> list[str]:
    """Suggested dotted keys: a similar key of the same section, else a key of any section with a similar name or with
    these initials."""
    section = f"{path}{name}"
    near = [path + match for match in get_close_matches(name, schema.keys, n=1, cutoff=0.7)]
    if near:
        return [near[0] + leaf[len(section) :]]
    word = leaf.rpartition(".")[2]
    by_name: dict[str, list[str]] = {}
    for key in known:
        by_name.setdefault(key.rpartition(".")[2], []).append(key)
    matches = get_close_matches(word, by_name, n=1, cutoff=0.7)
    matches = matches or [key for key in by_name if "".join(part[:1] for part in key.split("_")) == word]
    return by_name[matches[0]][:3] if matches else []


def _known_keys(config: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Every dotted key that the constructors of the nodes accept."""
    for name, value in config.items():
        if is_node(value):
            yield from _accepted_keys(value, f"{path}{name}.")
        elif isinstance(value, Mapping):
            yield from _known_keys(value, f"{path}{name}.")


def _root_keys(root: type) -> Iterator[str]:
    """The keys outside of config groups."""
    for name, key in schema_of(root).keys.items():
        if is_section(key.annotation):
            yield from (f"{name}.{inner}" for inner in schema_of(key.annotation).keys)
        else:
            yield name


def _accepted_keys(node: Mapping[str, Any], path: str) -> Iterator[str]:
    try:
        keys = schema_of(load_target(node["_target_"])).keys
    except ConfigError:  # reported where the node itself is visited
        return
    yield from (f"{path}{name}" for name in keys)
    yield from _known_keys(dict(_settings(node)), path)
