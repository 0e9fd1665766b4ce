"""Describes the types of signatures in terms of YAML, and validates values from YAML against them.

A type that YAML cannot express (a Protocol, a model class) means a nested node with `_target_`.
"""

from __future__ import annotations

import operator
import re
import sys
from collections.abc import Iterator, Sequence
from functools import cache, reduce
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import DocInfo, Ge, GroupedMetadata, Gt, Le, Lt
from pydantic import AfterValidator, AllowInfNan, BeforeValidator, Strict, TypeAdapter

from postrain.config.schema import LISTS, MAPPINGS, TARGET, is_node, is_section

SCIENTIFIC = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")
DESCRIPTIONS = {
    int: "an integer",
    float: "a number",
    str: "text",
    bool: "true or false",
    NoneType: "null",
    Path: "a path",
}
PLURALS = {int: "integers", float: "numbers", str: "texts"}
SIGNS = ((Gt, "gt", ">"), (Ge, "ge", ">="), (Lt, "lt", "<"), (Le, "le", "<="))
NODE = f"a node with {TARGET}"
# Upper bounds of at least this size only prevent typing errors from filling the memory; only messages about values that
# exceed them contain them.
LARGE = 1_000_000


def is_group(annotation: Any) -> bool:
    """True for a top-level key whose value is a node: an option of a config group."""
    return describe(annotation).startswith(NODE) and not is_section(annotation)


@cache
def adapter(annotation: Any) -> TypeAdapter[Any]:
    """Validates a value from YAML against `annotation`. Nested nodes pass unchecked: check.py visits them."""
    return TypeAdapter(_plain(annotation))


def _plain(annotation: Any) -> Any:
    """The equivalent type for pydantic: strict scalars, lists for tuples, nodes for classes."""
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation in (int, str, bool):
        return Annotated[annotation, Strict()]
    if annotation is float:
        return Annotated[float, Strict(), AllowInfNan(False), BeforeValidator(_scientific)]
    if annotation in (Any, None, NoneType, Path, *LISTS, *MAPPINGS) or origin is Literal:
        return annotation
    if origin is Annotated:
        return Annotated[(_plain(args[0]), *args[1:])]
    if origin in (Union, UnionType):
        return reduce(operator.or_, (_plain(arg) for arg in args))
    if origin in LISTS or origin in MAPPINGS:
        generic: Any = origin
        return generic[tuple(arg if arg is ... else _plain(arg) for arg in args)]
    return Annotated[Any, AfterValidator(_node)]


def _scientific(value: Any) -> Any:
    """Converts 1e-4, which PyYAML reads as text because it has no dot."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > sys.float_info.max:
        raise ValueError("larger than any float")
    return float(value) if isinstance(value, str) and SCIENTIFIC.fullmatch(value) else value


def _node(value: Any) -> Any:
    if not is_node(value):
        raise ValueError("not a node")
    return value


def describe(annotation: Any, *, limits: bool = False) -> str:
    """A type in terms of YAML; `limits` includes upper bounds of LARGE and more."""
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation in DESCRIPTIONS:
        return DESCRIPTIONS[annotation]
    if annotation is Any:
        return "anything"
    if origin is Annotated:
        documented = [item.documentation for item in args[1:] if isinstance(item, DocInfo)]
        return (
            documented[0]
            if documented
            else " ".join([describe(args[0]), " and ".join(_ranges(args[1:], limits))]).strip()
        )
    if origin is Literal:
        return ("one of " if len(args) > 1 else "") + ", ".join("null" if one is None else str(one) for one in args)
    if origin in (Union, UnionType):
        return " or ".join(describe(arg, limits=limits) for arg in args)
    if origin in LISTS:
        if _uniform(args):
            return f"a list of {PLURALS.get(args[0], describe(args[0]))}"
        return f"a list of {len(args)}: {', '.join(map(describe, args))}"
    if origin in MAPPINGS or annotation in MAPPINGS:
        return "a mapping" if not args or args[1] is Any else f"a mapping to {describe(args[1])}"
    return "a list" if annotation in LISTS else f"{NODE} ({getattr(annotation, '__name__', annotation)})"


def _uniform(args: tuple[Any, ...]) -> bool:
    return len(args) == 1 or args[1:] == (...,)


def _ranges(metadata: Sequence[Any], limits: bool) -> Iterator[str]:
    for item in metadata:
        if isinstance(item, GroupedMetadata):
            yield from _ranges(list(item), limits)
        bounds = [(getattr(item, field), sign) for kind, field, sign in SIGNS if isinstance(item, kind)]
        yield from (f"{sign} {bound}" for bound, sign in bounds if limits or bound < LARGE)
