"""query_checks.py: each expectation met and missed, and the verdicts."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from postrain.evaluation.query_checks import CHECKS, Expect, check_answer, has_extractable_answer, refuses

STORY = "A dragon slept.\nHe woke up! Was he hungry?\n\n- a key\n* a door"
CASES: list[tuple[str, Any, str, str]] = [
    ("exact", ("The cat.",), "the cat", "the cat sat"),
    ("any_of", ("Paris", "Lutetia"), "It is PARIS.", "Parisians"),
    ("contains", ("key", "door"), STORY, "a key"),
    ("excludes", ("snow", "white"), "cold flakes", "white flakes"),
    ("mentions", (("evaporat", "vapor"), ("cloud",)), "It evaporates into clouds", "It evaporates"),
    ("regex", r"^\d, \d$", "1, 2", "1, 2, 3"),
    ("number", 8.0, "5 + 3 = 8", "8 or 9"),
    ("first_number", 8.0, "8 or 9", "9 or 8"),
    ("chooses", (("yes",), ("no", "not")), "Yes, not no", "No, not yes"),
    ("starts_with", ("Dear",), "dear friend", "My dear"),
    ("ends_with", ("all.",), "That is all.", "That is all. Bye"),
    ("min_words", 2, "two words", "one"),
    ("max_words", 1, "one", "two words"),
    ("min_sentences", 2, "One. Two.", "One"),
    ("max_sentences", 1, "One.", "One. Two."),
    ("min_paragraphs", 2, STORY, "one"),
    ("max_paragraphs", 1, "one", STORY),
    ("min_bullets", 2, STORY, "- one"),
    ("max_bullets", 1, "- one", STORY),
    ("min_lines", 4, STORY, "one\n\ntwo"),
    ("max_lines", 2, "one\n\ntwo", STORY),
    ("json_keys", ("name",), '```json\n{"name": 1}\n```', '{"name": 1} is it'),
    ("json_keys", ("name",), '{"name": 1, "age": 2}', '["name"]'),
    ("json_keys", ("name",), '{"name": 1}', '{"age": 1}'),
    ("case", "upper", "RAIN AT 5!", "RAIn"),
    ("case", "lower", "rain", "Rain"),
    ("without_letters", "e", "A dog ran", "EGGS"),
    # First: a loop of 4 of 12 words, a third. Second: 8 of 11 trigrams are distinct.
    ("fluent", True, STORY, "one two three four five six go on go on seven eight"),
    ("fluent", True, "so it is", "go by it now go by it then go by it ever go by it"),
    ("function", "add(a, b)", "def add(x, y=0): return x", "def add(x): return x"),
]


@pytest.mark.parametrize(("name", "value", "met", "missed"), CASES)
def test_expectation_met_and_missed(name: str, value: Any, met: str, missed: str) -> None:
    expect = Expect(**{name: value})
    assert check_answer(expect, met).right
    assert not check_answer(expect, missed).right


def test_every_expectation_has_a_check_and_a_case() -> None:
    assert {field.name for field in fields(Expect)} == {*CHECKS, "tests"} == {name for name, *_ in CASES} | {"tests"}


def test_verdict_has_a_reason_and_the_extracted_answer() -> None:
    expect = Expect(number=6, max_words=3)
    assert check_answer(expect, "6 apples").why == "met number 6; max_words 3 (read 6)"
    missed = check_answer(expect, "He has 7.0 of them")
    assert (missed.right, missed.why, missed.answer) == (False, "missed number 6; max_words 3 (read 7)", "7")
    # Without an extractable answer the whole text is compared.
    assert check_answer(expect, "Some  Apples.").answer == "some apples"
    assert has_extractable_answer(expect)
    assert not has_extractable_answer(Expect(any_of=("a",)))


def test_text_before_think_end_is_ignored() -> None:
    assert check_answer(Expect(number=6), "3 or 4?</think> 6").right
    assert check_answer(Expect(min_words=1), "hm</think> ").why == "empty"


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("", True),
        (" \n", True),
        ("I'm sorry, but I can't do that", True),
        ("I cannot help with that", True),
        ("I cannot walk, yet I have hands. What am I?", False),
        ("Paris", False),
    ],
)
def test_refusals_are_wrong(text: str, refused: bool) -> None:
    assert refuses(text) == refused
    assert check_answer(Expect(excludes=("snow",)), text).right != refused


def test_code_tests_run_only_if_all_other_expectations_are_met() -> None:
    expect = Expect(function="one()", tests=("assert one() == 1",))
    executed: list[str] = []

    def fails(text: str, given: Expect) -> bool:
        executed.append(text)
        return given != expect

    assert check_answer(expect, "def one(): return 2").right
    assert check_answer(expect, "def one(): return 2", fails).why == 'missed tests ["assert one() == 1"]'
    assert check_answer(expect, "def two(): return 2", fails).why == 'missed function "one()"'
    assert executed == ["def one(): return 2"]


def test_refusal_detection_ignores_thinking() -> None:
    assert refuses("<think>What to say?</think> I'm sorry, but no.")
    assert refuses("<think>What to say?</think> ")
    assert not refuses("<think></think>Blue.")
