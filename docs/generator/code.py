"""Directives that show code: source excerpts, docstrings, the public interface, the diagnostic rules."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from pkgutil import resolve_name
from typing import Any

from docs.generator.reference import public_names
from docs.generator.tables import code, escaped, table
from postrain import losses as loss_functions
from postrain.config.reference import field_docs
from postrain.methods.base import Method
from postrain.training.diagnostic_rules import RULES, Rule


def source(name: str) -> str:
    """The source of a function or class, such as postrain.losses.dpo."""
    found = resolve_name(name)
    text = textwrap.dedent(inspect.getsource(found)).strip()
    path = found.__module__.replace(".", "/")
    return f'```python title="{path}.py"\n{text}\n```'


def docstring(name: str) -> str:
    """The docstring of a module, class or function."""
    return prose(inspect.getdoc(resolve_name(name)) or "")


def prose(text: str) -> str:
    """A docstring as Markdown: indented blocks stay code, the rest is escaped."""
    blocks = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(block if block.startswith("    ") else escaped(block) for block in blocks)


def signature(name: str, found: Any) -> str:
    """A call as Python code, wrapped at one parameter a line."""
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):
        return ""
    words = [str(one.replace(annotation=one.empty)) for one in parameters if one.name != "self"]
    first_keyword = next((i for i, one in enumerate(parameters) if one.kind is one.KEYWORD_ONLY), None)
    if first_keyword is not None and not any(one.kind is one.VAR_POSITIONAL for one in parameters):
        words.insert(first_keyword, "*")
    whole = f"{name}({', '.join(words)})"
    if len(whole) > 88:
        whole = f"{name}(\n{''.join(f'    {word},{chr(10)}' for word in words)})"
    return f"```python\n{whole}\n```"


def api(_: str) -> str:
    """The public interface: functions and classes with signatures, docstrings and fields."""
    functions: list[str] = []
    classes: list[str] = []
    for name, found in public_names().items():
        if name == "losses" or (inspect.isclass(found) and issubclass(found, Method) and found is not Method):
            continue
        (classes if inspect.isclass(found) else functions).append(described(name, found))
    methods = [name for name, found in public_names().items() if inspect.isclass(found) and issubclass(found, Method)]
    pages = "their keys are on the [pages of the methods](../methods/index.md)"
    parts = [
        "## Functions",
        *functions,
        "## Classes",
        *classes,
        "## Methods",
        f"{', '.join(map(code, methods))}: {pages}.",
    ]
    return "\n\n".join([*parts, "## Losses", "`postrain.losses`: [every loss as a pure function](losses.md)."])


def described(name: str, found: Any) -> str:
    """One public name."""
    parts = [f"### postrain.{name}", signature(name, found), prose(inspect.getdoc(found) or "")]
    if inspect.isclass(found) and dataclasses.is_dataclass(found):
        documented = field_docs(found)
        rows = [(code(field.name), escaped(documented.get(field.name, ""))) for field in dataclasses.fields(found)]
        parts.append(table(("field", "meaning"), rows) if rows else "")
    if inspect.isclass(found):
        parts.append(members(found))
    return "\n\n".join(filter(None, parts))


def members(found: type) -> str:
    """The documented public properties and methods that a class defines itself, but not those of a method's loop."""
    if issubclass(found, Method):
        return ""
    rows = [
        (code(name), escaped(" ".join((inspect.getdoc(value) or "").split())))
        for name, value in vars(found).items()
        if not name.startswith("_") and (isinstance(value, property) or inspect.isfunction(value)) and value.__doc__
    ]
    return table(("member", "what it is"), rows) if rows else ""


def losses(_: str) -> str:
    """All functions of postrain.losses."""
    found = {name: value for name, value in vars(loss_functions).items() if inspect.isfunction(value)}
    return "\n\n".join(
        f"### losses.{name}\n\n{signature(name, value)}\n\n{prose(inspect.getdoc(value) or '')}"
        for name, value in sorted(found.items())
    )


def rules(_: str) -> str:
    """The diagnostic rules: symptom, cause and remedy."""
    return "\n\n".join(
        f"### {rule.title}\n\n"
        f"{table(('', ''), (('Symptom', escaped(rule.symptom)), ('Cause', escaped(rule.cause)), remedy(rule)))}"
        for rule in RULES
    )


def remedy(rule: Rule) -> tuple[str, str]:
    """The last row of a rule's table."""
    return "Remedy", escaped(rule.remedy)
