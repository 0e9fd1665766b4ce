"""The countdown game, in the ecosystem's signature: reach the target from the given numbers, each used once.

Expressions are parsed and computed in exact fractions; nothing of them is ever run.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from postrain.rewards.answers import final_answer

MAX_EXPRESSION = 300
"""Characters; longer ones would reach the recursion limit and answer no countdown."""
PLAIN = {"×": "*", "·": "*", r"\times": "*", r"\cdot": "*", "÷": "/", r"\div": "/", "−": "-"}
"""How the signs of print and of LaTeX are typed."""
OPERATIONS: Mapping[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def countdown(
    completions: Sequence[str],
    nums: Sequence[Sequence[int] | None],
    target: Sequence[int | None],
    form: float = 0.0,
) -> list[float | None]:
    """1 where the answer is an expression of + − * / that uses each given number once and comes to the target.

    The answer is what is marked, or else the last line; `= 24` after it is ignored. `form` is paid for an expression
    that uses the numbers rightly and misses the target.
    """
    return [
        None if given is None or goal is None else _countdown(said, given, goal, form)
        for said, given, goal in zip(completions, nums, target, strict=True)
    ]


def _countdown(said: str, given: Sequence[int], goal: int, form: float) -> float:
    expression = _expression(said)
    if expression is None or sorted(map(int, re.findall(r"\d+", expression))) != sorted(map(int, given)):
        return 0.0
    try:
        value = _value(ast.parse(expression, mode="eval").body)
    except (SyntaxError, ZeroDivisionError):
        return 0.0
    return 1.0 if value == Fraction(goal) else form


def _expression(said: str) -> str | None:
    """The arithmetic a completion ends with; None where there is something else."""
    lines = final_answer(said).splitlines() or [""]
    text = lines[-1].rpartition(":")[2]
    for sign, plain in PLAIN.items():
        text = text.replace(sign, plain)
    text = text.partition("=")[0].strip()
    return text if len(text) <= MAX_EXPRESSION and re.fullmatch(r"[0-9+\-*/() ]+", text) else None


def _value(node: ast.expr) -> Fraction:
    """Exact value of an expression; raises SyntaxError at anything but numbers, signs and the four operations."""
    match node:
        case ast.Constant(value=int() as number):
            return Fraction(number)
        case ast.UnaryOp(op=ast.USub()):
            return -_value(node.operand)
        case ast.BinOp(op=op) if type(op) in OPERATIONS:
            return OPERATIONS[type(op)](_value(node.left), _value(node.right))
    raise SyntaxError
