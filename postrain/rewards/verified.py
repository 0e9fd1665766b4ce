"""Answers that a library or a computation can verify, in the ecosystem's signature: mathematics, JSON, countdown.

1 or 0, never something between: half an answer would be learned. None where the row says too little. Countdown's
expressions are parsed and computed in exact fractions; nothing of them is ever run. Running code is code.py's.
"""

from __future__ import annotations

import ast
import importlib
import json
import operator
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from postrain.config.extras import load
from postrain.errors import ConfigError
from postrain.rewards.base import per_completion
from postrain.rewards.text import final_answer, marked_answer

SECONDS = 5
"""What one mathematical comparison may take, where it can be interrupted."""
OPENING = re.compile(r"[{\[]")

Schema = Mapping[str, Any] | str


def math_equal(completions: Sequence[str], answer: Sequence[str | float | None]) -> list[float | None]:
    """1 where the final answer is mathematically the row's: ½ is 0.5 is \\frac{1}{2}. Needs the package math-verify.

    A row whose answer cannot be read as mathematics cannot be judged.
    """
    library = load("math_verify")
    return [_math_equal(library, said, right) for said, right in zip(completions, answer, strict=True)]


def _math_equal(library: Any, said: str, right: str | float | None) -> float | None:
    # Its time limit is an alarm, which only the main thread can set.
    seconds = SECONDS if threading.current_thread() is threading.main_thread() else None
    gold = [] if right is None else library.parse(_boxed(final_answer(str(right))), parsing_timeout=seconds)
    if not gold:
        return None
    marked = marked_answer(said)
    found = library.parse(said if marked is None else _boxed(marked), parsing_timeout=seconds)
    return float(bool(found) and library.verify(gold, found, timeout_seconds=seconds))


def _boxed(answer: str) -> str:
    """Bare LaTeX is not seen as mathematics."""
    return answer if "$" in answer else rf"\boxed{{{answer}}}"


def json_valid(completions: Sequence[str], schema: Schema | Sequence[Schema | None]) -> list[float | None]:
    """1 where the first JSON object or array of the completion fits the schema. Needs the package jsonschema.

    One schema for all, as an argument, or a column of them, as mappings or as text; it may not fetch other schemas.
    """
    jsonschema = load("jsonschema")
    schemas = per_completion(schema, len(completions))
    return [_json_valid(jsonschema, said, asked) for said, asked in zip(completions, schemas, strict=True)]


def _json_valid(jsonschema: Any, said: str, asked: Schema | None) -> float | None:
    if asked is None:
        return None
    referencing = importlib.import_module("referencing")  # comes with jsonschema
    try:
        schema = json.loads(asked) if isinstance(asked, str) else asked
        kind = jsonschema.validators.validator_for(schema)
        kind.check_schema(schema)
        # An empty registry: without one, the library opens the URL of any $ref.
        validator = kind(schema, registry=referencing.Registry())
        return float(any(validator.is_valid(value) for value in _first_json(said)))
    except (json.JSONDecodeError, jsonschema.SchemaError, referencing.exceptions.Unresolvable) as error:
        why = " ".join(str(error).split())
        raise ConfigError(f"schema: {asked!s:.80} is no JSON schema that stands alone ({why:.120})") from None
    except RecursionError:  # the completion is nested deeper than any answer
        return 0.0


def _first_json(text: str) -> Iterator[Any]:
    """The first JSON object or array in a text, if there is one."""
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    start = 0
    while opening := OPENING.search(text, start):
        try:
            value, _ = decoder.raw_decode(text, opening.start())
        except json.JSONDecodeError as error:
            # A bracket of prose, or JSON that was cut short; the insides of the latter are not the answer.
            start = max(error.pos, opening.end())
            continue
        except ValueError:  # NaN, Infinity or an endless number
            return
        yield value
        return


def _no_constant(name: str) -> None:
    """NaN and Infinity are Python's, not JSON's."""
    raise ValueError(name)


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
