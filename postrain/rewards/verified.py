"""Verifiable rewards that need a library or a computation, in TRL's signature: mathematics, JSON, countdown.

The reward is 1 or 0, without partial credit that a policy could exploit; None if the row lacks the answer. Countdown
expressions are parsed and evaluated in exact fractions, never executed. Code execution is in code.py.
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
"""Time limit of one mathematical comparison, where it can be interrupted."""
OPENING = re.compile(r"[{\[]")

Schema = Mapping[str, Any] | str


def math_equal(completions: Sequence[str], answer: Sequence[str | float | None]) -> list[float | None]:
    """1 if the final answer is mathematically equal to the row's (½ = 0.5 = \\frac{1}{2}). Needs math-verify.

    A row whose answer cannot be parsed as mathematics is unscorable.
    """
    library = load("math_verify")
    return [
        _math_equal(library, completion, expected) for completion, expected in zip(completions, answer, strict=True)
    ]


def _math_equal(library: Any, completion: str, expected: str | float | None) -> float | None:
    # The library's time limit is an alarm, which only the main thread can set.
    seconds = SECONDS if threading.current_thread() is threading.main_thread() else None
    gold = [] if expected is None else library.parse(_boxed(final_answer(str(expected))), parsing_timeout=seconds)
    if not gold:
        return None
    marked = marked_answer(completion)
    found = library.parse(completion if marked is None else _boxed(marked), parsing_timeout=seconds)
    return float(bool(found) and library.verify(gold, found, timeout_seconds=seconds))


def _boxed(answer: str) -> str:
    """The library does not recognise bare LaTeX as mathematics."""
    return answer if "$" in answer else rf"\boxed{{{answer}}}"


def json_valid(completions: Sequence[str], schema: Schema | Sequence[Schema | None]) -> list[float | None]:
    """1 if the first JSON object or array of the completion fits the schema. Needs the package jsonschema.

    One schema as an argument, or a column of mappings or their JSON text. References to external schemas are refused.
    """
    jsonschema = load("jsonschema")
    schemas = per_completion(schema, len(completions))
    return [
        _json_valid(jsonschema, completion, given_schema)
        for completion, given_schema in zip(completions, schemas, strict=True)
    ]


def _json_valid(jsonschema: Any, completion: str, given_schema: Schema | None) -> float | None:
    if given_schema is None:
        return None
    referencing = importlib.import_module("referencing")  # comes with jsonschema
    try:
        schema = json.loads(given_schema) if isinstance(given_schema, str) else given_schema
        kind = jsonschema.validators.validator_for(schema)
        kind.check_schema(schema)
        # An empty registry: without one, the library opens the URL of any $ref.
        validator = kind(schema, registry=referencing.Registry())
        return float(any(validator.is_valid(value) for value in _first_json(completion)))
    except (json.JSONDecodeError, jsonschema.SchemaError, referencing.exceptions.Unresolvable) as error:
        why = " ".join(str(error).split())
        raise ConfigError(f"schema: {given_schema!s:.80} is not a self-contained JSON schema ({why:.120})") from None
    except RecursionError:  # the completion is nested too deeply
        return 0.0


def _first_json(text: str) -> Iterator[Any]:
    """The first JSON object or array in a text, if there is one."""
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    start = 0
    while opening := OPENING.search(text, start):
        try:
            value, _ = decoder.raw_decode(text, opening.start())
        except json.JSONDecodeError as error:
            # A bracket in prose, or truncated JSON, whose inner values are not the answer.
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
"""Characters; longer expressions would reach the recursion limit."""
PLAIN = {"×": "*", "·": "*", r"\times": "*", r"\cdot": "*", "÷": "/", r"\div": "/", "−": "-"}
"""Typographic and LaTeX operators, and their ASCII form."""
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
    """1 if the answer is an expression of + − * / that uses each given number once and evaluates to the target.

    The answer is the marked one, else the last line; `= 24` after it is ignored. `form` is the reward of an expression
    that uses the given numbers and misses the target.
    """
    return [
        None if given is None or goal is None else _countdown(completion, given, goal, form)
        for completion, given, goal in zip(completions, nums, target, strict=True)
    ]


def _countdown(completion: str, given: Sequence[int], goal: int, form: float) -> float:
    expression = _expression(completion)
    if expression is None or sorted(map(int, re.findall(r"\d+", expression))) != sorted(map(int, given)):
        return 0.0
    try:
        value = _value(ast.parse(expression, mode="eval").body)
    except (SyntaxError, ZeroDivisionError):
        return 0.0
    return 1.0 if value == Fraction(goal) else form


def _expression(completion: str) -> str | None:
    """The arithmetic expression at the end of a completion; None if there is none."""
    lines = final_answer(completion).splitlines() or [""]
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
