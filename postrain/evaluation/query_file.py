"""Reads a file of hand-written queries, the bundled one or one's own: JSON lines, each a query.

    {"id": "...", "category": "...", "phrasings": ["...", "..."], "expect": {"number": 7}, "reference": "..."}

`expect` is an `Expect` of query_checks.py. A reference answer that does not meet it is refused: then one of the two is
mistaken.
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
    """One question in several wordings."""

    id: str
    category: str
    phrasings: tuple[str, ...]
    expect: Expect
    reference: str
    """An answer that is right."""


# Of plain containers that `check` has passed.
QUERY = TypeAdapter(Query)


def read_queries(path: str | None) -> tuple[Query, ...]:
    """The queries of a file, null being the bundled one. Raises ConfigError that names the line."""
    if path is not None and not (path.endswith(".jsonl") and Path(path).expanduser().is_file()):
        raise ConfigError(
            f"evaluation.tasks.queries.path={path}: there is no such .jsonl file; null takes the bundled one"
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
    """What the types cannot tell, in words."""
    folded = [" ".join(phrasing.split()) for phrasing in query.phrasings]
    if not all(folded) or not folded or len(set(folded)) < len(folded):
        yield "phrasings: expected at least one, none of them empty and none twice"
    if query.expect == Expect():
        yield f"expect: is empty; give some of {', '.join(CHECKS)}"
    yield from _malformed(query.expect)


def _malformed(expect: Expect) -> Iterator[str]:
    """Expectations that are no Python, no regular expression or no options, in words."""
    if expect.chooses is not None and (len(expect.chooses) < 2 or not all(expect.chooses)):
        yield "expect.chooses: expected at least two lists of names, the right option first, as in [[yes], [no]]"
    if expect.regex is not None and not _parses(re.compile, expect.regex, re.error):
        yield f"expect.regex: {expect.regex!r} is no regular expression"
    if expect.function is not None and not _parses(signature, expect.function, ValueError):
        yield f'expect.function: expected a call such as "add(a, b)", got {expect.function!r}'
    if expect.tests and expect.function is None:
        yield "expect.tests: are for a function, which expect.function has to name"
    if not all(_parses(ast.parse, test, SyntaxError) for test in expect.tests):
        yield "expect.tests: expected Python asserts, and one of them is no Python"


def _parses(read: Callable[[str], Any], text: str, error: type[Exception]) -> bool:
    try:
        read(text)
    except error:
        return False
    return True
