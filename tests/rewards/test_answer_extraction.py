"""Answer extraction in rewards/text.py: last numbers, marked answers."""

from __future__ import annotations

from decimal import Decimal

import pytest

from postrain.rewards.text import final_answer, last_number, marked_answer


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3 + 4 = 7.", "7"),
        ("#### 1,234", "1234"),
        ("1,234,567.5 in all", "1234567.5"),
        ("1,2", "2"),  # a list, not a thousands separator
        ("it is -0.50", "-0.5"),
        ("it is −5", "-5"),  # the typographic minus sign
        ("about .5 of it", "0.5"),
        ("pages 10-12", "12"),
        ("10 - 3 is 7", "7"),
        ("$18.", "18"),
        ("about 1e5", "100000"),
        ("1e99999", None),
        ("none", None),
        ("room 4b, H2", None),
        ("3.5kg", None),
        ("", None),
    ],
)
def test_last_number_is_extracted(text: str, number: str | None) -> None:
    assert last_number(text) == (None if number is None else Decimal(number))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so <answer> Paris </answer>.", "Paris"),
        (r"\boxed{\frac{1}{\sqrt{2}}} of 3", r"\frac{1}{\sqrt{2}}"),
        ("48 + 24\n#### 72.\nmore", "72"),
        ("#### -1,500", "-1,500"),
        (r"\boxed{1}, no: \boxed{2}", "2"),
        ("#### Step 3\nso 7", None),  # a heading
        (r"\boxed{72", None),
        ("<answer>7", None),
        ("", None),
    ],
)
def test_marked_answer_is_extracted(text: str, answer: str | None) -> None:
    assert marked_answer(text) == answer
    assert final_answer(text) == (text.strip() if answer is None else answer)


def test_marked_answer_of_unclosed_marks_takes_linear_time() -> None:
    # A search for the end of each opening mark would take 10⁹ steps instead of 10⁵.
    assert marked_answer("<answer>" * 20_000) is None
    assert marked_answer("\\boxed{" * 20_000) is None
