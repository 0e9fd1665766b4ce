"""query_file.py: invariants of the bundled queries, and errors that name the line."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from postrain.errors import ConfigError
from postrain.evaluation.query_checks import check_answer
from postrain.evaluation.query_code import passes, source
from postrain.evaluation.query_file import Query, read_queries

CATEGORIES = {"factual", "reasoning", "instruction_following", "creative", "code", "paraphrase"}
GOOD = {"id": "a", "category": "c", "phrasings": ["p", "q"], "expect": {"number": 7}, "reference": "7"}


@pytest.fixture(scope="module")
def queries() -> tuple[Query, ...]:
    return read_queries(None)


def test_bundled_queries_cover_each_category(queries: tuple[Query, ...]) -> None:
    counts = Counter(query.category for query in queries)
    assert set(counts) == CATEGORIES
    assert min(counts.values()) >= 6
    assert len(queries) >= 40


def test_every_query_has_several_unique_phrasings(queries: tuple[Query, ...]) -> None:
    assert min(len(query.phrasings) for query in queries) >= 2
    assert min(len(query.phrasings) for query in queries if query.category == "paraphrase") >= 4
    counts = Counter(" ".join(phrasing.casefold().split()) for query in queries for phrasing in query.phrasings)
    assert set(counts.values()) == {1}


def test_reference_meets_its_own_query_and_few_others(queries: tuple[Query, ...]) -> None:
    # Checks that are too lenient would accept the answers of other queries.
    for query in queries:
        assert check_answer(query.expect, query.reference).right
        others = [check_answer(query.expect, other.reference).right for other in queries if other is not query]
        assert sum(others) <= 0.25 * len(others), query.id


def test_references_pass_the_tests_of_their_code(queries: tuple[Query, ...]) -> None:
    code = [query for query in queries if query.expect.function]
    programs = [source(query.reference, (query.expect.function or "").partition("(")[0]) for query in code]
    # One process for all programs: their functions have unique names.
    assert passes("\n".join(programs), [test for query in code for test in query.expect.tests])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"phrasing": 1}, "phrasing: unknown key; did you mean phrasings?"),
        ({"phrasings": "p"}, "phrasings: expected a list of texts"),
        ({"phrasings": ["p", " p "]}, "phrasings: expected at least one, without empty or duplicate ones"),
        ({"expect": {}}, "expect: is empty; set at least one of exact, "),
        ({"expect": {"nmber": 7}}, "expect.nmber: unknown key; did you mean expect.number?"),
        ({"expect": {"number": "x"}}, "expect.number: expected a number or null, got 'x'"),
        ({"expect": {"regex": "("}}, "expect.regex: '(' is not a regular expression"),
        ({"expect": {"chooses": [["yes"]]}}, "expect.chooses: expected at least two lists of names"),
        ({"expect": {"function": "add"}}, "expect.function: expected a call such as \"add(a, b)\", got 'add'"),
        ({"expect": {"number": 7, "tests": ["x"]}}, "expect.tests: need expect.function"),
        ({"expect": {"function": "f()", "tests": ["assert ("]}}, "expect.tests: expected Python asserts"),
        ({"reference": "8"}, "reference: does not meet expect: missed number 7 (read 8)"),
        ({"id": "first"}, "the id first is taken by an earlier line"),
    ],
)
def test_errors_name_the_line(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps(GOOD | {"id": "first"}) + "\n\n" + json.dumps(GOOD | change) + "\n")
    with pytest.raises(ConfigError) as raised:
        read_queries(str(path))
    assert str(raised.value).startswith(f"{path}, line 3: {problem}")
    assert "\n" not in str(raised.value)


def test_missing_file_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"^evaluation.tasks.queries.path=none.jsonl: not an existing .jsonl"):
        read_queries("none.jsonl")
