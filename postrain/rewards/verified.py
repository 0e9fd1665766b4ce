"""Answers that a library can verify, in the ecosystem's signature: mathematics and JSON.

1 or 0, never something between: half an answer would be learned. None where the row says too little. Countdown has a
file of its own; running code is code.py's.
"""

from __future__ import annotations

import importlib
import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from postrain.config.extras import load
from postrain.rewards.answers import final_answer, marked_answer
from postrain.rewards.base import per_completion
from postrain.types import ConfigError

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
