"""The choice of the grader and its threshold on scripted engines."""

from __future__ import annotations

import pytest

from postrain.rewards.base import WeightedSum, is_model_based
from postrain.rewards.judge import Judge, SelfJudge
from postrain.rewards.reward_model import OutcomeRewardModel, ProcessRewardModel
from tests.evaluation.scaling.scripted import (
    TableReward,
    correct_and_wrong,
    eval_model,
    make_task,
)


def test_missing_grader_gives_a_note():
    found = make_task("self_consistency", grader="reward")(eval_model(correct_and_wrong()))
    assert found.metrics == {}
    assert found.notes[0].startswith("grader=reward: there is no grader; choose a verifiable reward")


def test_threshold_turns_a_reward_into_correctness():
    marks = TableReward({"is": 0.5})
    for threshold, accuracy in ((None, 0.5), (0.5, 1.0), (0.6, 0.0)):
        found = make_task("self_consistency", threshold=threshold, samples=2)(
            eval_model(correct_and_wrong(), reward=marks)
        )
        assert found.metrics["accuracy"].value == accuracy


def test_threshold_tolerates_float32_rounding():
    # 0.7 as float32 is 0.699999988.
    found = make_task("self_consistency", threshold=0.7, samples=1)
    assert found(eval_model(correct_and_wrong(), reward=TableReward({"is": 0.7}))).metrics["accuracy"].value == 1


@pytest.mark.parametrize("model_based", [True, False])
def test_learned_rewards_are_not_automatic_graders(model_based):
    reward_model = type("LearnedReward", (TableReward,), {"model_based": model_based})({"is": 1.0})
    for reward in (reward_model, WeightedSum(parts={"learned": reward_model}, weights={"learned": 1.0})):
        found = make_task("self_consistency", samples=2)(eval_model(correct_and_wrong(), reward=reward))
        # One of the two answers equals the row's.
        assert found.metrics["one_sample"].value == (0.5 if model_based else 1)
    assert all(map(is_model_based, (Judge, OutcomeRewardModel, ProcessRewardModel, SelfJudge)))


def test_gold_scores_grade_without_reward_and_answers():
    scripted = eval_model(lambda _: [" In the end, they all went home."], "data=world_stories")
    found = make_task("best_of_n", samples=2)(scripted)
    assert found.notes[0].startswith("accuracy: mean gold score")
    assert 0 < found.metrics["accuracy"].value < 1
