"""Python functions in answers: extracts the source, checks the signature, and runs tests.

An answer may contain its code in a code block or in prose. Running code needs the user's consent; rewards/sandbox.py
describes the limits.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence

from postrain.rewards.code import extract_program
from postrain.rewards.sandbox import Limits, execute

LIMITS = Limits(seconds=5, memory_mb=512)


def signature(call: str) -> tuple[str, int]:
    """The name and the number of arguments of a call such as "add(a, b)". Raises ValueError for anything else."""
    try:
        found = ast.parse(call, mode="eval").body
    except SyntaxError:
        raise ValueError(call) from None
    if not (isinstance(found, ast.Call) and isinstance(found.func, ast.Name)) or found.keywords:
        raise ValueError(call)
    return found.func.id, len(found.args)


def defines(text: str, call: str) -> bool:
    """Whether the code of an answer parses and defines a function that accepts the call."""
    name, arguments = signature(call)
    return any(_accepts(node.args, arguments) for node in _functions(source(text, name)) if node.name == name)


def source(text: str, name: str) -> str:
    """The code of an answer: its code block or the whole text, else the lines of the function in prose."""
    program = extract_program(text)
    if any(function.name == name for function in _functions(program)):
        return program
    found = re.search(
        rf"^def {re.escape(name)}\b[^\n]*\n(?:[ \t]+[^\n]*(?:\n|\Z)|[ \t]*\n)*", program + "\n", re.MULTILINE
    )
    return found[0] if found else ""


def passes(program: str, tests: Sequence[str]) -> bool:
    """Whether a program passes all tests, run in a process with resource limits."""
    return execute(program, tests=tests, limits=LIMITS).output == "1" * len(tests)


def _functions(program: str) -> list[ast.FunctionDef]:
    """The top-level functions of a program; empty if it does not parse."""
    try:
        statements = ast.parse(program).body
    except (SyntaxError, ValueError):
        return []
    return [statement for statement in statements if isinstance(statement, ast.FunctionDef)]


def _accepts(signed: ast.arguments, count: int) -> bool:
    """Whether a signature accepts `count` positional arguments."""
    positional = len(signed.posonlyargs) + len(signed.args)
    required = positional - len(signed.defaults)
    needs_names = any(default is None for default in signed.kw_defaults)
    return required <= count and (count <= positional or signed.vararg is not None) and not needs_names
