"""Best-of-n on scripted engines against worked numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from postrain.errors import ConfigError
from tests.evaluation.scaling.scripted import (
    TableReward,
    correct_and_wrong,
    correct_answers,
    eval_model,
    make_task,
    scores,
    sums,
)


def test_best_of_n_with_a_misaligned_reward_falls_with_n():
    reward_model = TableReward(dict.fromkeys(correct_answers(), 0.0) | {"is": 1.0})
    scripted = eval_model(correct_and_wrong(), reward=None)
    # Two of four samples are correct, and the reward prefers the wrong ones. Best of 2 is correct only if both are:
    # C(2,2)/C(4,2) = 1/6; best of 4 never.
    found = make_task("best_of_n", samples=4, scorer=reward_model, prompts=1)(scripted)
    by_reward = found.curves["best of n (reward)"]
    assert scores(by_reward) == pytest.approx([1 / 2, 1 / 6, 0])
    assert [point.kl for point in by_reward] == pytest.approx([0, math.log(2) - 1 / 2, math.log(4) - 3 / 4])
    assert scores(found.curves["best of n (oracle)"]) == pytest.approx([1 / 2, 5 / 6, 1])
    assert found.metrics["gain"].value == pytest.approx(-1 / 2)
    assert scores(found.curves["greedy"]) == [1]
    tokens = [point.tokens for point in by_reward]
    assert tokens == pytest.approx([tokens[0], 2 * tokens[0], 4 * tokens[0]])
    assert found.example == sums().eval_prompts(1).texts[0]
    assert found.records[0]["right"] == pytest.approx({"1": 1 / 2, "2": 1 / 6, "4": 0})


def test_best_of_n_breaks_ties_uniformly_and_does_not_select_by_the_grader():
    verifier = TableReward(dict.fromkeys(correct_answers(), 1.0))
    found = make_task("best_of_n", samples=4)(eval_model(correct_and_wrong(), reward=verifier))
    assert scores(found.curves["best of n (logprob)"]) == pytest.approx([1 / 2] * 3)
    assert "best of n (reward)" not in found.curves
    assert any(note.startswith("by=reward: there is no reward besides the grader") for note in found.notes)
    by_answer = make_task("best_of_n", samples=4, grader="answer")
    assert "best of n (reward)" in by_answer(eval_model(correct_and_wrong(), reward=TableReward({"is": 1.0}))).curves


def test_best_of_n_refuses_temperature_zero():
    scripted = eval_model(correct_and_wrong())
    with pytest.raises(ConfigError, match=r"^rollout\.temperature=0: .*more than 0$"):
        make_task("best_of_n")(replace(scripted, engine=replace(scripted.engine, temperature=0.0)))  # type: ignore[type-var]


def test_ungraded_completions_count_as_wrong_with_a_note():
    half = eval_model(correct_and_wrong(), reward=TableReward({correct_answers()[0]: 1.0}))
    found = make_task("best_of_n", samples=2, prompts=1)(half)
    # One of two samples cannot be graded; the greedy completion can.
    assert "1 of 3 completions could not be graded and count as wrong" in found.notes
    assert found.metrics["one_sample"].value == 1 / 2
