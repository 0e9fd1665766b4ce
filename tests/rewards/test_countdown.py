"""verified.countdown: numbers used once each, exact target, no execution."""

from __future__ import annotations

import pytest

from postrain.rewards.verified import countdown


def score(text: str, *, nums: tuple[int, ...] = (3, 1, 6, 6), target: int = 48, form: float = 0.0) -> float | None:
    (score,) = countdown([text], [nums], [target], form=form)
    return score


@pytest.mark.parametrize(
    "text",
    [
        "(3 + 1) * (6 + 6)",
        " (3 + 1) × (6 + 6) = 48\n",
        "First I thought 6 * 6.\nAnswer: (3+1)*(6+6)",
        "<think>6*6</think><answer>(3+1)*(6+6)</answer> So it is.",
        r"\boxed{(3+1)\times(6+6)}",
        "(6--6)*(1+3)",
        "48 = (3+1)*(6+6)",
        "(3+1)*(6+6) = 4*12 = 48",
        "(3+1)*(6+6).",
        "**(3+1)*(6+6)**",
        "$(3+1)*(6+6)$",
        r"\((3+1)*(6+6)\)",
        "The answer is (3+1)*(6+6)",
        r"<answer>\boxed{(3+1)*(6+6)}</answer>",
    ],
)
def test_correct_expressions_score_one(text: str) -> None:
    assert score(text) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "48",
        "6*6+6+6",  # some numbers used twice, others not at all
        "(3 + 1) * 12",
        "(3 + 1) * (6 + 6) * 1",
        "3 ** 1 + 6 + 6",
        "31 + 6 + 6",
        "so it is (3 + 1) * (6 + 6) I think",
        "(3 + 1) * (6 + 6",
        "3 1 6 6",
        "3(1)(6)(6)",
        "0.(3+1)*(6+6)",
        "(3+1) = (6+6) = 48",
        "(6 + 1) / (6 - 3 - 3)",
        "1 / (6 - 6) + 3",
        "__import__('os').abort()",
        "-" * 5000 + "3",
        "(" * 5000,
    ],
)
def test_wrong_expressions_score_zero(text: str) -> None:
    assert score(text) == 0.0


def test_fractions_are_exact() -> None:
    # 8 / (3 - 8/3) = 8 / (1/3) = 24, which floating point misses
    assert score("8 / (3 - 8 / 3)", nums=(3, 3, 8, 8), target=24) == 1.0


def test_form_rewards_expressions_of_the_given_numbers() -> None:
    assert score("3 + 1 + 6 + 6", form=0.1) == 0.1
    assert score("3 + 1 + 6", form=0.1) == 0.0
    assert score("(3 + 1) * (6 + 6)", form=0.1) == 1.0


def test_row_without_numbers_or_target_is_unscorable() -> None:
    assert countdown(["1", "1"], [None, [1]], [1, None]) == [None, None]


def test_numbers_may_be_text():
    assert countdown(["(3 + 5) * 3"] * 2, ["[3, 5, 3]", "3 5 4"], [24, 24]) == [1.0, 0.0]
