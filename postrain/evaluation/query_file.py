"""Reads a file of hand-written queries, the bundled one or a user's: JSON lines, one query each.

    {"id": "...", "category": "...", "phrasings": ["...", "..."], "expect": {"number": 7}, "reference": "..."}

`expect` is an `Expect` of query_checks.py. A reference answer that does not meet it raises ConfigError.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from postrain.config.check import check
from postrain.data.readers import read_file
from postrain.errors import ConfigError
from postrain.evaluation.query_checks import CHECKS, Expect, check_answer
from postrain.evaluation.query_code import signature

BUNDLED = Path(__file__).parents[1] / "assets" / "queries.jsonl"


@dataclass(frozen=True, kw_only=True)
class Query:
    """A question in several phrasings."""

    id: str
    category: str
    phrasings: tuple[str, ...]
    expect: Expect
    reference: str
    """A correct answer."""


# Builds a query from plain containers that `check` has validated.
QUERY = TypeAdapter(Query)


def read_queries(path: str | None) -> tuple[Query, ...]:
    """The queries of a file; None is the bundled one. Raises ConfigError that names the line."""
    if path is not None and not (path.endswith(".jsonl") and Path(path).expanduser().is_file()):
        raise ConfigError(
            f"evaluation.tasks.queries.path={path}: not an existing .jsonl file; null uses the bundled one"
        )
    table = read_file(path or str(BUNDLED))
    queries: dict[str, Query] = {}
    for row in table.rows:
        query = _query(row.values, table.where(row.number))
        if query.id in queries:
            raise ConfigError(f"{table.where(row.number)}: the id {query.id} is taken by an earlier line; give another")
        queries[query.id] = query
    return tuple(queries.values())


def _query(values: Mapping[str, Any], where: str) -> Query:
    try:
        check(values, Query)
    except ConfigError as problems:
        raise ConfigError(f"{where}: {str(problems).splitlines()[0]}") from None
    query = QUERY.validate_python(values)
    problem = next(_problems(query), None)
    if problem:
        raise ConfigError(f"{where}: {problem}")
    verdict = check_answer(query.expect, query.reference)
    if not verdict.right:
        raise ConfigError(f"{where}: reference: does not meet expect: {verdict.why}; correct one of the two")
    return query


def _problems(query: Query) -> Iterator[str]:
    """Errors that types cannot express."""
    folded = [" ".join(phrasing.split()) for phrasing in query.phrasings]
    if not all(folded) or not folded or len(set(folded)) < len(folded):
        yield "phrasings: expected at least one, without empty or duplicate ones"
    if query.expect == Expect():
        yield f"expect: is empty; set at least one of {', '.join(CHECKS)}"
    yield from _malformed(query.expect)


def _malformed(expect: Expect) -> Iterator[str]:
    """Errors in regular expressions, options, signatures and tests."""
    if expect.chooses is not None and (len(expect.chooses) < 2 or not all(expect.chooses)):
        yield "expect.chooses: expected at least two lists of names, the correct option first, as in [[yes], [no]]"
    if expect.regex is not None and not _parses(re.compile, expect.regex, re.error):
        yield f"expect.regex: {expect.regex!r} is not a regular expression"
    if expect.function is not None and not _parses(signature, expect.function, ValueError):
        yield f'expect.function: expected a call such as "add(a, b)", got {expect.function!r}'
    if expect.tests and expect.function is None:
        yield "expect.tests: need expect.function, the function to test"
    if not all(_parses(ast.parse, test, SyntaxError) for test in expect.tests):
        yield "expect.tests: expected Python asserts, but one does not parse"


def _parses(read: Callable[[str], Any], text: str, error: type[Exception]) -> bool:
    try:
        read(text)
    except error:
        return False
    return True
