"""process.py: a process reward model scores the steps of a completion, in text, whatever stands beside it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from postrain.data.conversation import user
from postrain.data.kinds.steps import LAYOUT_FILE, StepLayout
from postrain.errors import ConfigError
from postrain.rewards.reward_model import OutcomeRewardModel, ProcessRewardModel
from tests.rewards.test_reward_model import NANO, reward_model

PROMPTS = ("3 + 4 + 2 = ?", "1 + 1 = ?", "2 + 2 = ?")
COMPLETIONS = (" 3 + 4 = 7. 7 + 2 = 9. The answer is 9.", " The answer is 2.", "  ")
SPLIT = r"(?<=[.!?])\s+|\n+"


@pytest.fixture
def prm(tmp_path: Path) -> Callable[..., ProcessRewardModel]:
    """A random model of 128 positions that says it has learned from steps."""
    reward_model(tmp_path, architecture="llama")
    (tmp_path / LAYOUT_FILE).write_text(StepLayout(joiner=" ", separator="").to_json())

    def load(**changes) -> ProcessRewardModel:
        settings = {"split": SPLIT, "aggregate": "min", "batch_tokens": 4096, "dtype": "fp32", **changes}
        return ProcessRewardModel(path=str(tmp_path), **settings)

    return load


@pytest.mark.parametrize(
    ("split", "completion", "steps"),
    [
        (SPLIT, COMPLETIONS[0], ("3 + 4 = 7.", "7 + 2 = 9.", "The answer is 9.")),
        (SPLIT, "It is 3.5.\n\nSo: 7\n", ("It is 3.5.", "So: 7")),
        (r"\n+", "a. b.\nc", ("a. b.", "c")),
        (SPLIT, " \n ", ()),
    ],
)
def test_a_completion_is_cut_into_steps(prm, split, completion, steps):
    assert prm(split=split).steps(completion) == steps


def test_a_score_is_plain_transformers_probability_of_the_chain_up_to_the_step(prm, tmp_path):
    reward = prm()
    (found,) = reward.step_scores(PROMPTS[:1], COMPLETIONS[:1])
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    chain = reward.layout.chain(reward.template, user(PROMPTS[0]), reward.steps(COMPLETIONS[0]))
    for step, score in enumerate(found):
        ids = torch.cat([chain.prompt, *chain.steps[: step + 1]])
        with torch.no_grad():
            assert score == pytest.approx(float(model(ids[None]).logits.sigmoid()), abs=1e-5)


def test_a_score_is_the_chains_own(prm):
    together = prm().step_scores(PROMPTS, COMPLETIONS)
    assert [len(steps) for steps in together] == [3, 1, 0]
    for place, steps in enumerate(together):
        alone = prm(batch_tokens=1).step_scores(PROMPTS[place : place + 1], COMPLETIONS[place : place + 1])
        assert steps == pytest.approx(alone[0], abs=1e-5)
    # A search asks about beginnings: later steps change nothing about earlier ones.
    (begun,) = prm().chain_scores(PROMPTS[:1], [("3 + 4 = 7.", "7 + 2 = 9.")])
    assert begun == pytest.approx(together[0][:2], abs=1e-5)


@pytest.mark.parametrize(
    ("aggregate", "value"),
    # of the probabilities ½, ¼, ¾
    [("last", 3 / 4), ("min", 1 / 4), ("product", 3 / 32), ("mean", 1 / 2)],
)
def test_one_number_is_made_of_the_steps_and_the_others_are_told(prm, monkeypatch, aggregate, value):
    reward = prm(aggregate=aggregate)
    monkeypatch.setattr(reward, "step_scores", lambda *_: [(1 / 2, 1 / 4, 3 / 4), ()])
    found = reward(PROMPTS[:2], COMPLETIONS[:2], ({}, {}))
    assert found.total_B[0].item() == pytest.approx(value)
    assert math.isnan(found.total_B[1])
    assert found.parts[aggregate] == (pytest.approx(value), None)
    assert set(found.parts) == {"last", "min", "product", "mean", "steps"}
    assert found.parts["steps"] == (3, 0)


def test_nothing_to_score_is_no_error(prm):
    found = prm()(PROMPTS[:2], ["", " "], ({}, {}))
    assert found.total_B.isnan().all()


def test_a_long_prompt_loses_its_start_and_steps_longer_than_the_context_cannot_be_scored(prm):
    reward = prm()
    kept, lost = reward.step_scores(["a " * 400 + PROMPTS[0], PROMPTS[0]], [COMPLETIONS[0], "7 + 2 = 9. " * 40])
    assert len(kept) == 3
    assert lost == ()


def test_models_of_steps_and_of_answers_are_told_apart(prm, tmp_path):
    with pytest.raises(ConfigError, match=r"reward\.path=.*: a process reward model, .*reward=process"):
        OutcomeRewardModel(path=str(tmp_path), batch_tokens=64, dtype="fp32")
    (tmp_path / LAYOUT_FILE).unlink()
    with pytest.raises(ConfigError, match=r"reward\.path=.*: an outcome reward model.*reward=learned"):
        prm()
    with pytest.raises(ConfigError, match=r"reward\.path=.*: a language model"):
        ProcessRewardModel(path=str(NANO), split=SPLIT, aggregate="min", batch_tokens=64, dtype="fp32")


@pytest.mark.parametrize(("split", "says"), [("(", "not a regular expression"), (r"(\n)", r"write \(\?:\.\.\.\)")])
def test_a_border_has_to_be_an_expression(prm, split, says):
    with pytest.raises(ConfigError, match=rf"^reward\.split=.*{says}"):
        prm(split=split)
