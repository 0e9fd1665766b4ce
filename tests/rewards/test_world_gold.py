"""world.py: the gold score (known ground truth of the synthetic world) as a reward."""

from __future__ import annotations

import pytest

from postrain.errors import ConfigError
from postrain.rewards.base import nan_to_none
from postrain.rewards.world import Gold
from postrain.world import gold

STORY = {
    "gold": {
        "weights": {"mood": 0.5, "non_repetition": 0.5},
        "mood": {"target": "good"},
        "non_repetition": {},
    }
}
NUMBER = {"gold": {"weights": {"correct": 1.0}, "correct": {"type": "number", "accept": "7"}}}
TEXT = " The sun was bright and warm. Tom smiled at a friend."


def test_gold_reward_is_the_weighted_sum_and_logs_all_parts() -> None:
    rewards = Gold(weights={"mood": 1.0, "non_repetition": 0.3})(("A.", "3 + 4 = "), (TEXT, "7"), (STORY, NUMBER))
    parts = gold.score("A.", TEXT, STORY["gold"])
    assert nan_to_none(rewards.total_B) == (pytest.approx(parts["mood"] + 0.3 * parts["non_repetition"]), None)
    assert rewards.parts["correct"] == (None, 1.0)
    # "total" is the reward, so the gold total is logged under another name.
    assert rewards.parts["gold"] == (pytest.approx(parts["total"]), 1.0)
    assert "total" not in rewards.parts


def test_row_whose_gold_is_null_is_unscorable() -> None:
    rewards = Gold(weights={"total": 1.0})(("a", "3 + 4 = "), ("b", "7"), ({"gold": None}, NUMBER))
    assert nan_to_none(rewards.total_B) == (None, 1.0)


def test_gold_reward_of_the_total() -> None:
    rewards = Gold(weights={"total": 2.0})(("3 + 4 = ",) * 2, ("7", "8"), (NUMBER, NUMBER))
    assert nan_to_none(rewards.total_B) == (2.0, 0.0)


def test_repeated_good_words_score_below_a_story() -> None:
    reward = Gold(weights={"mood": 1.0, "non_repetition": 0.3})
    story, spam = reward(("A.",) * 2, (TEXT, " happy" * 30), (STORY,) * 2).total_B.tolist()
    assert story > spam


def test_row_without_gold_and_unknown_part_are_refused() -> None:
    with pytest.raises(ConfigError, match="needs the column gold, and the prompts have only answer"):
        Gold(weights={"total": 1.0})(("a",), ("b",), ({"answer": 1},))
    with pytest.raises(ConfigError, match="needs the column gold, and the prompts have no further columns; use"):
        Gold(weights={"total": 1.0})(("a",), ("b",), ({},))
    with pytest.raises(ConfigError, match=r"expected some of total, correct, .*, got mod"):
        Gold(weights={"mod": 1.0})
