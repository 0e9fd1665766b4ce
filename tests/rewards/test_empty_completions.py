"""Every built-in reward function accepts empty completions, without a reward for them."""

from __future__ import annotations

from typing import Any

import pytest

from postrain.rewards.function import Function

# The score of each function for "", on a row with a known answer.
FUNCTIONS: dict[str, tuple[dict[str, Any], dict[str, Any], float]] = {
    "text.exact": ({"answer": "7"}, {}, 0.0),
    "text.numeric": ({"answer": "7"}, {}, 0.0),
    "text.answer": ({"answer": "seven"}, {}, 0.0),
    "text.length": ({}, {"words": 3}, 0.0),
    "text.matches": ({}, {"pattern": "a+"}, 0.0),
    "text.finds": ({}, {"pattern": "a+"}, 0.0),
    "text.tagged": ({}, {"tags": ["think", "answer"]}, 0.0),
    "text.non_repetition": ({}, {}, 1.0),
    "constraints.constraints": ({"constraints": {"max_words": 3}}, {}, 0.0),
    "verified.countdown": ({"nums": [1, 2], "target": 3}, {"form": 0.1}, 0.0),
    "shaping.repetition": ({}, {}, 0.0),
    "shaping.overlong": ({}, {"max_words": 3, "cache": 1}, 0.0),
    "shaping.cosine": ({"answer": "7"}, {"max_words": 3}, -10.0),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_empty_completion_has_the_lowest_reward(name: str) -> None:
    row, arguments, score = FUNCTIONS[name]
    reward = Function(function=f"postrain.rewards.{name}", arguments=arguments)
    assert reward(["p"] * 2, ["", " \n"], [row] * 2).total_B.tolist() == [score, score]
