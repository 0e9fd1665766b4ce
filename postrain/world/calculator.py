"""A calculator as an environment: the policy writes an expression, the calculator writes what it comes to.

Two ways to call it, by configuration. As running text: the policy writes `7 + 2 =` and reads ` 9.`; as an instruction
model's tool: it writes `<calc>7 + 2</calc>` and reads `<result>9</result>`. Knows + - * / and parentheses; the
expression is parsed, never run. Left out: powers, whose results no bound on the text bounds.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from postrain.errors import ConfigError
from postrain.types import Count, NonNegative, Step

OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
SIGNS: dict[type[ast.unaryop], Callable[[float], float]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
ARITHMETIC = re.compile(r"[-+*/()\d. \t]*$")
SENTENCE_END = re.compile(r"\.(?!\d)")
LONGEST = 100
"""Characters of an expression: enough for any sum, few enough for any parser."""
MALFORMED = "error"


@dataclass(frozen=True, kw_only=True)
class Calculator:
    """Works out what stands before `close`."""

    open: str = ""
    """Text that begins a call; empty where the expression is whatever arithmetic stands before `close`."""
    close: str = "="
    """Text that ends a call and hands over."""
    before: str = " "
    """What the answer begins with."""
    after: str = "."
    """What the answer ends with."""
    error_penalty: NonNegative = 0.0
    """Taken off the reward for each call that makes no sense."""
    max_turns: Count = 8
    """Turns the policy gets at most."""
    room: Count = 64
    """Tokens of an episode that answers may fill."""

    def __post_init__(self) -> None:
        if not self.close:
            raise ConfigError("environment.close: expected the text that ends a call, such as = or </calc>, got none")

    @property
    def stop(self) -> tuple[str, ...]:
        """What hands over."""
        return (self.close,)

    def reset(self, prompt: str, columns: Mapping[str, Any]) -> None:
        """A calculator has no memory."""

    def step(self, state: None, turn: str) -> Step:
        """The value of the call that `turn` ends with."""
        value = self.value(turn)
        return Step(
            f"{self.before}{MALFORMED if value is None else value}{self.after}",
            state,
            reward=-self.error_penalty if value is None else 0.0,
            error=value is None,
        )

    def value(self, turn: str) -> str | None:
        """What the call comes to; None where it is malformed."""
        said = turn.rpartition(self.close)[0]
        if not self.open:
            return calculate(trailing(said))
        _, opened, inside = said.rpartition(self.open)
        return calculate(inside) if opened else None


def trailing(text: str) -> str:
    """The arithmetic a text ends with, from the last full stop on."""
    found = ARITHMETIC.search(text[-2 * LONGEST :])
    return SENTENCE_END.split(found[0])[-1] if found else ""


def calculate(expression: str) -> str | None:
    """The value of an arithmetic expression as people write numbers; None where it has none."""
    text = expression.strip()
    if not text or len(text) > LONGEST:
        return None
    try:
        value = _value(ast.parse(text, mode="eval").body)
        return str(int(value)) if value == int(value) else f"{value:.10g}"
    except (SyntaxError, ValueError, ArithmeticError):
        return None


def _value(node: ast.expr) -> float:
    """Raises ValueError for anything but arithmetic on numbers."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp) and type(node.op) in SIGNS:
        return SIGNS[type(node.op)](_value(node.operand))
    raise ValueError(f"{type(node).__name__} is no arithmetic")
