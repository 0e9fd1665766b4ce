"""Verifiable rewards that need a library or a computation, in TRL's signature: mathematics, JSON, countdown.

The reward is 1 or 0, without partial credit that a policy could exploit; None if the row lacks the answer. Countdown
expressions are parsed and evaluated in exact fractions, never executed. Code execution is in code.py.
"""

from __future__ import annotations

import importlib
import json
import logging
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from postrain.arithmetic import evaluate
from postrain.config.extras import load
from postrain.errors import ConfigError, one_line
from postrain.rewards.base import per_completion
from postrain.rewards.text import APPROXIMATELY, Expected, final_answer, marked_answer, spellings
from postrain.rewards.user_code import within_time_limit

SECONDS = 5
"""Time limit of one mathematical comparison, where it can be interrupted."""
OPENING = re.compile(r"[{\[]")
CURRENCY = re.compile(r"\\?[$€£]")
INLINE = re.compile(r"(?:[^$]*(?<!\\)\$[^$]+(?<!\\)\$)+[^$]*")
SIGN = rf"(?:{APPROXIMATELY.pattern}|≈)"
# "\approx 72", "x ≈ 72" and "48 ≈ 72" are 72. Of \frac{1}{3} \approx 0.33 the library compares the formula.
LEFT_SIDE = re.compile(rf"\A(\s*\$?\s*)(?:[A-Za-z]\w*|[-+−]?\d[\d.,]*)?\s*{SIGN}\s*")
NEGATED = re.compile(rf"\\not\s*{SIGN}|\\n(?:approx|sim|simeq|cong)(?![A-Za-z])|[≉≁≄≇]")

Schema = Mapping[str, Any] | str


def math_equal(completions: Sequence[str], answer: Sequence[Expected]) -> list[float | None]:
    """1 if the final answer is mathematically equal to the row's (½ = 0.5 = \\frac{1}{2}). Needs math-verify.

    A row whose answer cannot be parsed as mathematics is unscorable.
    """
    library = load("math_verify")
    for name in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).addFilter(_not_about_time_limit)
    return [
        _math_equal(library, completion, expected) for completion, expected in zip(completions, answer, strict=True)
    ]


def _not_about_time_limit(record: logging.LogRecord) -> bool:
    """Hides the library's advice to limit the time of a call without its alarm: reward.timeout does."""
    return not record.getMessage().startswith("Timeout is disabled")


def _math_equal(library: Any, completion: str, expected: Expected) -> float | None:
    # The library's time limit is an alarm: only the main thread can set it, and it would cancel that of reward.timeout.
    free = threading.current_thread() is threading.main_thread() and not within_time_limit()
    seconds = SECONDS if free else None
    golds = [gold for one in spellings(expected) if (gold := library.parse(_boxed(one), parsing_timeout=seconds))]
    if not golds:
        return None
    marked = marked_answer(completion)
    if marked is not None and NEGATED.search(marked):
        return 0.0
    # The library does not separate a command from digits.
    text = APPROXIMATELY.sub(r"\g<0> ", completion) if marked is None else _boxed(marked)
    found = library.parse(text, parsing_timeout=seconds)
    return float(bool(found) and any(library.verify(gold, found, timeout_seconds=seconds) for gold in golds))


def _boxed(answer: str) -> str:
    """An answer as the library recognises it as mathematics: between dollar signs, or boxed and without currency;
    without the sign of an approximation."""
    answer = LEFT_SIDE.sub(r"\1", answer)
    return answer if INLINE.fullmatch(answer) else rf"\boxed{{{CURRENCY.sub('', answer)}}}"


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
        raise ConfigError(
            f"schema: {given_schema!s:.80} is not a self-contained JSON schema ({one_line(error, 120)})"
        ) from None
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


# After words, such as "The answer is"; not a part of a name or of another number.
EXPRESSION = re.compile(r"(?<![\w.,])[0-9+\-*/() ]+\Z")
MAX_EXPRESSION = 300
"""Characters; longer expressions would reach the recursion limit."""
PLAIN = {"×": "*", "·": "*", r"\times": "*", r"\cdot": "*", "÷": "/", r"\div": "/", "−": "-"}
PLAIN |= dict.fromkeys((r"\left", r"\right", r"\(", r"\)", "$", "`"), "")
"""Typographic and LaTeX operators and their ASCII form, and markup."""


def countdown(
    completions: Sequence[str],
    nums: Sequence[Sequence[int] | str | None],
    target: Sequence[int | None],
    form: float = 0.0,
) -> list[float | None]:
    """1 if the answer is an expression of + − * / that uses each given number once and evaluates to the target.

    The answer is the marked one, else the expression at the end of the last line; `= 24` after it or `24 =` before it
    are ignored. The numbers may be given as text, such as "[3, 5, 8]". `form` is the reward of an expression that uses
    the given numbers and misses the target.
    """
    return [
        None if given is None or goal is None else _countdown(completion, given, goal, form)
        for completion, given, goal in zip(completions, nums, target, strict=True)
    ]


def _countdown(completion: str, given: Sequence[int] | str, goal: int, form: float) -> float:
    expression = _expression(completion)
    given = re.findall(r"\d+", given) if isinstance(given, str) else given
    if expression is None or sorted(map(int, re.findall(r"\d+", expression))) != sorted(map(int, given)):
        return 0.0
    try:
        value = evaluate(expression)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return 0.0
    return 1.0 if value == Fraction(goal) else form


def _expression(completion: str) -> str | None:
    """The arithmetic expression at the end of a completion; None if there is none."""
    lines = final_answer(completion).splitlines() or [""]
    text = lines[-1].rpartition(":")[2]
    for sign, plain in PLAIN.items():
        text = text.replace(sign, plain)
    sides = [EXPRESSION.search(side.strip(" *.")[-MAX_EXPRESSION - 1 :]) for side in text.split("=")]
    found = [side[0].strip(" *") for side in sides if side]
    best = next((side for side in found if re.search(r"\d *[-+*/]", side)), found[0] if found else None)
    return best if best is not None and len(best) <= MAX_EXPRESSION else None
