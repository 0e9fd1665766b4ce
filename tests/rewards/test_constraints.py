"""constraints.py: each constraint met and missed, and malformed constraints."""

from __future__ import annotations

from typing import Any

import pytest

from postrain.errors import ConfigError
from postrain.rewards.constraints import constraints, paragraphs, sentences

TEXT = 'The sun rose, at 3.5 degrees. "Warm!" text Tom.\n\n- one bird\n* two birds\n\nWas it? Yes'


def score(given: Any, text: str = TEXT, *, strict: bool = False) -> float | None:
    (score,) = constraints([text], [given], strict=strict)
    return score


@pytest.mark.parametrize(
    ("name", "met", "missed"),
    [
        ("min_words", 18, 19),
        ("max_words", 18.0, 17.0),
        ("min_sentences", 5, 6),  # degrees. | "Warm!" | Tom. | it? | Yes
        ("max_sentences", 5, 4),
        ("min_paragraphs", 3, 4),
        ("max_paragraphs", 3, 2),
        ("min_bullets", 2, 3),
        ("max_bullets", 2, 1),
        ("contains", ["SUN", "text tom"], ["sun", "bir"]),
        ("contains", "3.5 degrees", "moon"),
        ("excludes", ["bir", "moon"], ["moon", "bird"]),
        ("starts_with", "the sun", "sun"),
        ("starts_with", ["A", "The"], ["A", "B"]),
        ("ends_with", "yes", "it?"),
    ],
)
def test_each_constraint_met_and_missed(name: str, met: Any, missed: Any) -> None:
    assert score({name: met}) == 1.0
    assert score({name: missed}) == 0.0


@pytest.mark.parametrize(
    ("text", "count"),
    [('One. Two! "Three?" Four', 4), ("3.5 is not two", 1), ("Wait... what?", 2), ("", 0), ("a.b", 1)],
)
def test_sentences_are_counted(text: str, count: int) -> None:
    assert sentences(text) == count


def test_paragraphs_are_counted() -> None:
    assert [paragraphs(text) for text in ("", "a\nb", "a\n \n\nb", "a\n\n")] == [0, 1, 2, 1]


def test_score_is_the_share_met_or_all_if_strict() -> None:
    given = {"min_words": 2, "max_words": 3, "contains": "sun", "excludes": "moon"}  # "the moon": 2 of 4
    assert score(given, "the moon") == 0.5
    assert score(given, "the moon", strict=True) == 0.0
    assert score(given, "the sun", strict=True) == 1.0


@pytest.mark.parametrize("text", ["", "  \n"])
def test_empty_completion_meets_no_constraint(text: str) -> None:
    assert score({"max_words": 5, "excludes": "moon"}, text) == 0.0


def test_constraints_from_a_column_an_argument_and_json_text() -> None:
    assert constraints(["a", "a b"], [{"max_words": 1, "contains": None}, '{"max_words": 1}']) == [1.0, 0.0]
    assert constraints(["a", "a b"], {"max_words": 1}) == [1.0, 0.0]
    assert constraints(["a"] * 3, [None, {}, {"max_words": None}]) == [None, None, None]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"min_word": 2}, "unknown constraint min_word; did you mean min_words?"),
        ({"tone": 2}, "unknown constraint tone; expected one of min_words, max_words"),
        ({"min_words": -1}, "min_words: expected an integer >= 0, got -1"),
        ({"min_words": 1.5}, "min_words: expected an integer >= 0, got 1.5"),
        ({"min_words": float("inf")}, "min_words: expected an integer >= 0, got inf"),
        ({"min_words": "2"}, "min_words: expected an integer >= 0, got '2'"),
        ({"contains": ["a", 3]}, "contains: expected some text, or a list of texts, got ['a', 3]"),
        ({"ends_with": " "}, "ends_with: expected some text"),
        ("at most two words", "expected a mapping, got 'at most two words'"),
        (3, "expected a mapping such as {min_words: 20}, got 3"),
    ],
)
def test_malformed_constraints_are_a_one_line_error(given: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        score(given)
    assert str(caught.value).startswith("constraints: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
