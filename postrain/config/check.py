"""Checks a composed config against the signatures of its constructors, before anything is built (tree.py builds it).

Every problem is reported, in one error, a line each: unknown key, missing key, wrong type, value out of range, target
that cannot be imported. Leaves out what only a run can tell (does the file exist, does the model fit the data).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from difflib import get_close_matches
from typing import Any, get_args, get_origin

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

MISSING = "???"
# Added to the message about a wrong value.
REMEDIES = {
    "debug": "it shows tracebacks; for a short trial use method.updates=3 evaluation=quick",
    "trainer._target_": "a run makes its own Trainer; its options are understood with lightning.pytorch.Trainer",
    "trainer.precision": "fp16 gives NaN on a CPU and loses the small log-ratios these methods need; use bf16-mixed",
    "optim.lr": "method.learning_rate",
}


def check(config: Mapping[str, Any], root: type) -> None:
    """Raise one ConfigError with every problem of `config`, plain containers whose top-level keys are `root`'s fields.

    A key of `root` whose type is a Section is written without `_target_`.
    """
    known = [*_of_root(root), *_known(config)]
    problems = list(_problems("", config, root, known))
    problems += [f"{TARGET}: unknown key; an option of a group says what it builds"] if TARGET in config else []
    if problems:
        raise ConfigError("\n".join(problems))


def check_objects(**made: Any) -> None:
    """Raise one ConfigError with every setting of dataclasses made in Python that a config may not have, by the keys
    they would stand at: check_objects(method=...). What they hold objects in is those objects' own to check."""
    problems = [
        problem
        for path, value in made.items()
        if is_dataclass(value)
        for name, key in schema_of(type(value)).keys.items()
        if NODE not in describe(key.annotation) and getattr(value, name, key.default) is not key.default
        for problem in _value_problems(f"{path}.{name}", getattr(value, name), key.annotation, ())
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def _settings(node: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The constructor arguments of a node, without `_target_`."""
    return ((str(name), value) for name, value in node.items() if name != TARGET)


def _problems(
    path: str,
    node: Mapping[str, Any],
    target: Callable[..., Any],
    known: Sequence[str],
    given: Collection[str] = (),
) -> Iterator[str]:
    """Everything wrong with `node` as arguments of `target`, which the run calls with those that are `given`."""
    schema = schema_of(target)
    for name, value in _settings(node):
        here = f"{path}{name}"
        if name in given:
            yield f"{here}: the run sets this itself" + f"; set {REMEDIES[here]}" * (here in REMEDIES)
        elif name in schema.keys:
            yield from _value_problems(here, value, schema.keys[name].annotation, known)
        elif schema.open:
            yield from _nested_problems(here, value, known)
        else:
            yield from _unknown_problems(path, name, value, schema, known)
    for name, key in schema.keys.items():
        if key.required and name not in node and name not in given:
            yield f"{path}{name}: missing; expected {describe(key.annotation)}"


def _value_problems(path: str, value: Any, annotation: Any, known: Sequence[str]) -> Iterator[str]:
    if value == MISSING:
        yield f"{path}: required; write {path}=...; expected {describe(annotation)}"
    elif isinstance(value, Mapping) and is_section(annotation):
        yield from _problems(f"{path}.", value, annotation, known)
        if TARGET in value:
            yield f"{path}.{TARGET}: unknown key; {path} is not built from a class"
    elif isinstance(value, Mapping) and not is_node(value) and (items := _misfits(value, annotation)):
        among = [name for name in value if name not in items]
        for name, item in items.items():
            near = get_close_matches(name, among, n=1)
            there = f"; available: {', '.join(among)}" if among else ""
            hint = f"; did you mean {path}.{near[0]}?" if near else there
            got = abbreviate(masked(item, name))
            yield f"{path}.{name}: expected {describe(get_args(annotation)[1])}, got {got}{hint}"
    elif not _fits(value, annotation):
        large = isinstance(value, int) and abs(value) > LARGE
        remedy = f"; {REMEDIES[path]}" if path in REMEDIES else _quoting(path, value, annotation)
        without = f" without {TARGET}" if isinstance(value, Mapping) and NODE in describe(annotation) else ""
        got = abbreviate(masked(value, path))
        yield f"{path}: expected {describe(annotation, limits=large)}, got {got}{without}{remedy}"
    elif is_node(value):
        yield from _node_problems(path, value, annotation, known)
    else:
        yield from _nested_problems(path, value, known)


def _fits(value: Any, annotation: Any) -> bool:
    try:
        adapter(annotation).validate_python(value)
    except ValidationError:
        return False
    return True


def _misfits(value: Mapping[str, Any], annotation: Any) -> dict[str, Any]:
    """The items of a mapping to nodes that are none; empty where the annotation says nothing of nodes."""
    of_nodes = get_origin(annotation) in MAPPINGS and describe(get_args(annotation)[1]).startswith(NODE)
    return {name: item for name, item in value.items() if not is_node(item)} if of_nodes else {}


def _quoting(path: str, value: Any, annotation: Any) -> str:
    """How to say a number where text was expected."""
    is_text = isinstance(value, int | float) and _fits(str(value), annotation)
    return f"; for text write {path}='\"{abbreviate(value)}\"'" if is_text else ""


def _nested_problems(path: str, value: Any, known: Sequence[str]) -> Iterator[str]:
    """The problems of every node in `value`, itself included."""
    if is_node(value):
        yield from _node_problems(path, value, Any, known)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _nested_problems(f"{path}.{name}", item, known)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _nested_problems(f"{path}[{index}]", item, known)


def _node_problems(path: str, node: Mapping[str, Any], annotation: Any, known: Sequence[str]) -> Iterator[str]:
    """Everything wrong with a node that stands where `annotation` is expected."""
    try:
        target = load_target(node[TARGET])
        given = [each for each in getattr(annotation, "__metadata__", ()) if isinstance(each, SuppliedArguments)]
        problems = list(_problems(f"{path}.", node, target, known, given[0] if given else ()))
    except ConfigError as problem:
        yield f"{path}.{TARGET}: {problem}"
        return
    if provides(target, annotation):
        yield from problems
    else:
        remedy = f"; {REMEDIES[f'{path}.{TARGET}']}" if f"{path}.{TARGET}" in REMEDIES else ""
        yield f"{path}.{TARGET}: expected {describe(annotation)}, and {node[TARGET]} is none{remedy}"


def _unknown_problems(path: str, name: str, value: Any, schema: Schema, known: Sequence[str]) -> Iterator[str]:
    """An unknown key, or each leaf of an unknown section, with the closest key there is."""
    if name.startswith("_"):
        yield f"{path}{name}: unknown key; of Hydra's own keys only {TARGET} is used here"
        return
    for leaf in _leaves(f"{path}{name}", value):
        alike = _alike(path, name, leaf, schema, known)
        fallback = f"did you mean {' or '.join(alike)}?" if alike else f"known keys: {', '.join(schema.keys)}"
        yield f"{leaf}: unknown key; {suggest_key(leaf, known.__contains__) or fallback}"


def _leaves(path: str, value: Any) -> Iterator[str]:
    if not isinstance(value, Mapping) or not value or is_node(value):
        yield path
        return
    for name, item in value.items():
        yield from _leaves(f"{path}.{name}", item)


def _alike(path: str, name: str, leaf: str, schema: Schema, known: Sequence[str]) -> list[str]:
    """Dotted keys a user may have meant: a misspelt neighbour first, else the word or its long form elsewhere."""
    section = f"{path}{name}"
    near = [path + match for match in get_close_matches(name, schema.keys, n=1, cutoff=0.7)]
    if near:
        return [near[0] + leaf[len(section) :]]
    word = leaf.rpartition(".")[2]
    elsewhere: dict[str, list[str]] = {}
    for key in known:
        elsewhere.setdefault(key.rpartition(".")[2], []).append(key)
    matches = get_close_matches(word, elsewhere, n=1, cutoff=0.7)
    matches = matches or [key for key in elsewhere if "".join(part[:1] for part in key.split("_")) == word]
    return elsewhere[matches[0]][:3] if matches else []


def _known(config: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Every dotted key that some node's constructor accepts."""
    for name, value in config.items():
        if is_node(value):
            yield from _accepted(value, f"{path}{name}.")
        elif isinstance(value, Mapping):
            yield from _known(value, f"{path}{name}.")


def _of_root(root: type) -> Iterator[str]:
    """The keys that belong to no group."""
    for name, key in schema_of(root).keys.items():
        if is_section(key.annotation):
            yield from (f"{name}.{inner}" for inner in schema_of(key.annotation).keys)
        else:
            yield name


def _accepted(node: Mapping[str, Any], path: str) -> Iterator[str]:
    try:
        keys = schema_of(load_target(node["_target_"])).keys
    except ConfigError:  # reported where the node itself is visited
        return
    yield from (f"{path}{name}" for name in keys)
    yield from _known(dict(_settings(node)), path)
