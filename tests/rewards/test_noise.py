"""noise.py: errors at known rates, and a reward of pure chance."""

from __future__ import annotations

from typing import Any

import pytest

from postrain.errors import ConfigError
from postrain.rewards.base import columns_read, is_verifiable, nan_to_none
from postrain.rewards.function import Function
from postrain.rewards.noise import Noisy, chance, flip, uniform
from postrain.types import RewardBatch

ANSWER = Function(function="postrain.rewards.text.answer")
COUNT = 4000


def noisy(completion: str, *, row: dict[str, object], **settings: Any) -> RewardBatch:
    columns = [{**row, "sample_seed": index} for index in range(COUNT)]
    return Noisy(reward=ANSWER, **settings)([""] * COUNT, [completion] * COUNT, columns)


def test_flip_compares_the_draw_with_the_rate_of_the_value() -> None:
    rates = {"false_positive": 0.3, "false_negative": 0.1}
    assert [flip(0.0, draw, **rates) for draw in (0.29, 0.31)] == [1.0, 0.0]
    assert [flip(1.0, draw, **rates) for draw in (0.09, 0.11)] == [0.0, 1.0]


def test_noise_has_the_configured_rates_and_logs_the_clean_reward() -> None:
    rates = {"false_positive": 0.3, "false_negative": 0.1}
    right = noisy("7", row={"answer": "7"}, **rates)
    wrong = noisy("8", row={"answer": "7"}, **rates)
    # Binomial standard deviations: √(0.1 · 0.9 / 4000) = 0.0047 and √(0.3 · 0.7 / 4000) = 0.0072; four of them.
    assert float(right.total_B.mean()) == pytest.approx(0.9, abs=0.019)
    assert float(wrong.total_B.mean()) == pytest.approx(0.3, abs=0.029)
    assert set(right.parts["clean"]) == {1.0}
    assert sum(one or 0 for one in right.parts["flipped"]) == COUNT - float(right.total_B.sum())
    assert set(noisy("7", row={"answer": None}).total_B.isnan().tolist()) == {True}


def test_noise_depends_on_the_seed_of_the_sample_alone() -> None:
    reward = Noisy(reward=ANSWER, false_positive=0.5)
    columns = [{"answer": "7", "sample_seed": seed} for seed in range(20)]
    together = reward([""] * 20, ["8"] * 20, columns).total_B.tolist()
    alone = [float(reward([""], ["9"], [row]).total_B) for row in columns[::-1]]
    assert together == alone[::-1]
    assert columns_read(reward) == {"sample_seed"}
    assert not is_verifiable(reward)


def test_reward_that_is_not_zero_or_one_is_refused() -> None:
    reward = Noisy(reward=Function.of(lambda completions: [0.5]))
    with pytest.raises(ConfigError, match=r"reward.reward: scored 0.5 for prompt 'say'; errors are defined for"):
        reward(["say"], ["x"], [{}])


def test_chance_has_its_probability_and_repeats() -> None:
    found = chance([""] * COUNT, range(COUNT), probability=0.25)
    # √(0.25 · 0.75 / 4000) = 0.0068
    assert sum(found) / COUNT == pytest.approx(0.25, abs=0.028)
    assert found == chance(["x"] * COUNT, range(COUNT), probability=0.25)
    assert 0.0 <= uniform(0, "chance", 3) < 1.0
    with pytest.raises(ConfigError, match="probability: expected a number between 0 and 1, got 1"):
        chance([""], [0], probability=1)


def test_noisy_sum_reads_what_its_parts_read() -> None:
    inner = Noisy(reward=Function(function="postrain.rewards.shaping.length_budget"))
    assert columns_read(inner) == {"sample_seed", "completion_ids"}
    row = {"answer": "7", "completion_ids": [1], "sample_seed": 0}
    with pytest.raises(ConfigError, match="expected exact or max, got 'min'"):
        Noisy(reward=Function(function="postrain.rewards.shaping.length_budget", arguments={"form": "min"}))(
            [""], ["7"], [row]
        )
    assert nan_to_none(inner([""], ["no"], [{**row, "answer": None}]).total_B) == (None,)
