"""answers.py: the extracted answer of a completion, its span, and its probability."""

from __future__ import annotations

import math

import pytest

from postrain.evaluation.scaling.answers import Answer, answer_probability, extract_answer


@pytest.mark.parametrize(
    ("text", "kind", "answer", "span"),
    [
        (" 3 + 4 = 7. The answer is 7.", "number", "7", "7"),
        ("7.00 apples", "number", "7", "7.00"),
        ("it is 1,200, so <answer>1,200</answer> of 5", "number", "1200", "1,200"),
        (r"so \boxed{12} of 13", "number", "12", "12"),
        ("no number", "number", None, ""),
        ("<answer>none</answer> 7", "number", None, ""),
        ("The capital? <answer> Paris </answer>.", "text", "paris", "Paris"),
        (" Paris\n", "text", "paris", "Paris"),
        ("  ", "text", None, ""),
    ],
)
def test_extract_answer_returns_value_and_span(text, kind, answer, span):
    found = extract_answer(text, kind)
    if answer is None:
        assert found is None
    else:
        assert found is not None
        assert found.value == answer
        assert text[found.start : found.end] == span


def test_answer_probability_is_of_the_answer_tokens():
    pieces = ["The", " answer is", " 1", "2", "."]
    logps = [math.log(p) for p in (0.1, 0.2, 0.5, 0.8, 0.3)]
    answer = extract_answer("".join(pieces), "number")
    assert answer is not None
    assert answer == Answer("12", 14, 16)
    found = answer_probability(answer, range(5), logps, lambda ids: "".join(pieces[index] for index in ids))
    # p(" 1") · p("2") = 0.5 · 0.8
    assert found == pytest.approx(0.4)
