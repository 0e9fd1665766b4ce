"""Schemas read from the source of this package, without running it: a misspelt key is reported before torch and
Lightning, which take seconds, are imported.

`static_target` stands in for a class or function: an empty class with a `static_schema`. Annotations are evaluated with
the same empty classes in place of tensors, protocols and components, so that check.py describes them as it would
describe the originals. Classes of other packages have no static schema; check.py then accepts their arguments.
"""

from __future__ import annotations

import ast
import builtins
import importlib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

from postrain.config.schema import Key, Schema, stand_in, without_deferred

SOURCE = Path(__file__).resolve().parents[1]
PACKAGE = SOURCE.name
LIGHT = ("typing", "collections.abc", "pathlib", "annotated_types", "pydantic", f"{PACKAGE}.config.schema")
"""Modules whose names are the real ones: what annotations consist of."""


def static_target(path: str) -> Any:
    """The stand-in of the class or function at a dotted path. Raises LookupError if the source does not define one."""
    module, _, name = path.rpartition(".")
    if not module.startswith(f"{PACKAGE}."):
        return stand_in(name)
    return _target(module, name)


@cache
def _target(module: str, name: str) -> Any:
    where, definition = _definition(module, name)
    if isinstance(definition, ast.ClassDef):
        family = _family(where, definition)
        names = [cls.name for _, cls in family]
        return stand_in(name, _schema_of_class(family), section="Section" in (*names, *_base_names(family)))
    if isinstance(definition, ast.FunctionDef | ast.AsyncFunctionDef):
        return stand_in(name, _schema_of_function(where, definition))
    raise LookupError(f"{module}.{name}")


@cache
def _tree(module: str) -> Mapping[str, tuple[str, ast.AST]]:
    """The top-level names of a module: their definitions, with the module that an import takes them from."""
    file = SOURCE.joinpath(*module.split(".")[1:])
    file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
    if not file.is_file():
        raise LookupError(module)
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    found: dict[str, tuple[str, ast.AST]] = {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found[node.name] = (module, node)
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package)
            found |= {alias.asname or alias.name: (source, alias) for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id: (module, node.value) for target in targets if isinstance(target, ast.Name)}
    return found


def _definition(module: str, name: str) -> tuple[str, ast.AST]:
    """The definition of a name of this package, through imports; raises LookupError."""
    where, node = _tree(module)[name]
    if not isinstance(node, ast.alias):
        return where, node
    if not where.startswith(PACKAGE):
        raise LookupError(f"{where}.{node.name}")
    return _definition(where, node.name)


def _family(module: str, cls: ast.ClassDef) -> list[tuple[str, ast.ClassDef]]:
    """A class and its bases in this package, in an order in which an inherited definition comes after its override."""
    family = [(module, cls)]
    for base in cls.bases:
        base = base.value if isinstance(base, ast.Subscript) else base
        if not isinstance(base, ast.Name):
            continue
        try:
            where, definition = _definition(module, base.id)
        except LookupError:
            continue
        if isinstance(definition, ast.ClassDef):
            # The last occurrence of a shared base counts, as in Python's method resolution order.
            further = _family(where, definition)
            family = [one for one in family if one not in further] + further
    return family


def _base_names(family: list[tuple[str, ast.ClassDef]]) -> Iterator[str]:
    return (base.id for _, cls in family for base in cls.bases if isinstance(base, ast.Name))


def _decorators(cls: ast.ClassDef) -> set[str]:
    called = (each.func if isinstance(each, ast.Call) else each for each in cls.decorator_list)
    return {each.id for each in called if isinstance(each, ast.Name)}


def _schema_of_class(family: list[tuple[str, ast.ClassDef]]) -> Schema:
    """Fields of a dataclass, else the arguments of the first `__init__`."""
    dataclasses = [(module, cls) for module, cls in family if _is_dataclass(module, cls)]
    for module, cls in family:
        if (module, cls) in dataclasses:
            break
        init = next((node for node in cls.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"), None)
        if init is not None:
            return _schema_of_function(module, init, skip=1)
    keys: dict[str, Key] = {}
    for module, cls in reversed(dataclasses):
        for node in cls.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                key = _key(module, node.annotation, node.value)
                if key is not None and not node.target.id.startswith("_"):
                    keys[node.target.id] = key
    return Schema(keys, open=False)


def _is_dataclass(module: str, cls: ast.ClassDef) -> bool:
    """Whether the class is decorated, or inherits from one that makes its subclasses dataclasses."""
    return "dataclass" in _decorators(cls) or any(
        "dataclass_transform" in _decorators(one) for _, one in _family(module, cls)
    )


def _schema_of_function(module: str, node: ast.FunctionDef | ast.AsyncFunctionDef, *, skip: int = 0) -> Schema:
    given = node.args
    plain = [*given.posonlyargs, *given.args]
    required = [*[True] * (len(plain) - len(given.defaults)), *[False] * len(given.defaults)]
    required = [*required[skip:], *(default is None for default in given.kw_defaults)]
    keys = {
        arg.arg: Key(without_deferred(_annotation(module, arg.annotation)), needed)
        for arg, needed in zip([*plain[skip:], *given.kwonlyargs], required, strict=True)
        if not arg.arg.startswith("_")
    }
    return Schema(keys, open=given.kwarg is not None)


def _key(module: str, annotation: ast.expr, value: ast.expr | None) -> Key | None:
    """The key of a dataclass field; None for class variables, InitVars and fields that __init__ does not take."""
    kind = annotation.value if isinstance(annotation, ast.Subscript) else annotation
    if isinstance(kind, ast.Name) and kind.id in ("ClassVar", "InitVar", "KW_ONLY"):
        return None
    required = value is None
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "field":
        given = {word.arg: word.value for word in value.keywords}
        if isinstance(given.get("init"), ast.Constant) and not ast.literal_eval(given["init"]):
            return None
        required = not given.keys() & {"default", "default_factory"}
    return Key(without_deferred(_annotation(module, annotation)), required)


def _annotation(module: str, annotation: ast.expr | None) -> Any:
    return Any if annotation is None else _value(module, annotation)


def _value(module: str, node: ast.expr) -> Any:
    """The value of an annotation, or of what it names."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _value(module, ast.parse(node.value, mode="eval").body)
    code = compile(ast.Expression(node), module, "eval")
    return eval(code, {}, _Names(module))


class _Names(dict[str, Any]):
    """The names of a module, looked up when an annotation uses them."""

    def __init__(self, module: str) -> None:
        self.module = module

    def __missing__(self, name: str) -> Any:
        if name not in _tree(self.module):
            return getattr(builtins, name, None) if hasattr(builtins, name) else stand_in(name)
        where, node = _tree(self.module)[name]
        if isinstance(node, ast.alias):
            if where in LIGHT:
                return getattr(importlib.import_module(where), node.name)
            return _Names(where)[node.name] if where.startswith(PACKAGE) else stand_in(name)
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            return _target(where, name)
        return _value(where, node) if isinstance(node, ast.expr) else stand_in(name)
