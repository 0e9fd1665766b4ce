"""reward_model.py: a process reward model scores the steps of a completion, independent of the batch."""

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
    """A random model of 128 positions whose folder marks it as a process reward model."""
    reward_model(tmp_path, architecture="llama")
    (tmp_path / LAYOUT_FILE).write_text(StepLayout(joiner=" ", separator="").to_json())

    def load(**changes) -> ProcessRewardModel:
        settings = {"step_separator": SPLIT, "aggregate": "min", "micro_batch_tokens": 4096, "dtype": "fp32", **changes}
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
def test_completion_is_split_into_steps(prm, split, completion, steps):
    assert prm(step_separator=split).steps(completion) == steps


def test_step_score_equals_transformers_on_the_prefix(prm, tmp_path):
    reward = prm()
    (found,) = reward.step_scores(PROMPTS[:1], COMPLETIONS[:1], [{}])
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    chain = reward.layout.chain(reward.template, user(PROMPTS[0]), reward.steps(COMPLETIONS[0]))
    for step, score in enumerate(found):
        ids = torch.cat([chain.prompt, *chain.steps[: step + 1]])
        with torch.no_grad():
            assert score == pytest.approx(float(model(ids[None]).logits.sigmoid()), abs=1e-5)


def test_step_scores_do_not_depend_on_the_batch_or_later_steps(prm):
    together = prm().step_scores(PROMPTS, COMPLETIONS, [{}] * 3)
    assert [len(steps) for steps in together] == [3, 1, 0]
    for index, steps in enumerate(together):
        alone = prm(micro_batch_tokens=1).step_scores(PROMPTS[index : index + 1], COMPLETIONS[index : index + 1], [{}])
        assert steps == pytest.approx(alone[0], abs=1e-5)
    # A search scores prefixes: later steps must not change the scores of earlier ones.
    (prefix,) = prm().chain_scores(PROMPTS[:1], [("3 + 4 = 7.", "7 + 2 = 9.")], [{}])
    assert prefix == pytest.approx(together[0][:2], abs=1e-5)


@pytest.mark.parametrize(
    ("aggregate", "value"),
    # of the probabilities ½, ¼, ¾
    [("last", 3 / 4), ("min", 1 / 4), ("product", 3 / 32), ("mean", 1 / 2)],
)
def test_aggregate_is_the_reward_and_all_aggregates_are_logged(prm, monkeypatch, aggregate, value):
    reward = prm(aggregate=aggregate)
    monkeypatch.setattr(reward, "step_scores", lambda *_: [(1 / 2, 1 / 4, 3 / 4), ()])
    found = reward(PROMPTS[:2], COMPLETIONS[:2], ({}, {}))
    assert found.total_B[0].item() == pytest.approx(value)
    assert math.isnan(found.total_B[1])
    assert found.parts[aggregate] == (pytest.approx(value), None)
    assert set(found.parts) == {"last", "min", "product", "mean", "steps"}
    assert found.parts["steps"] == (3, 0)


def test_completions_without_steps_are_unscorable(prm):
    found = prm()(PROMPTS[:2], ["", " "], ({}, {}))
    assert found.total_B.isnan().all()


def test_long_prompts_are_truncated_and_long_steps_unscorable(prm):
    reward = prm()
    prompts, completions = ["a " * 400 + PROMPTS[0], PROMPTS[0]], [COMPLETIONS[0], "7 + 2 = 9. " * 40]
    kept, lost = reward.step_scores(prompts, completions, [{}, {}])
    assert len(kept) == 3
    assert lost == ()


def test_outcome_and_process_reward_models_are_distinguished(prm, tmp_path):
    with pytest.raises(ConfigError, match=r"reward\.path=.*: a process reward model, .*reward=process"):
        OutcomeRewardModel(path=str(tmp_path), micro_batch_tokens=64, dtype="fp32")
    (tmp_path / LAYOUT_FILE).unlink()
    with pytest.raises(ConfigError, match=r"reward\.path=.*: an outcome reward model.*reward=learned"):
        prm()
    with pytest.raises(ConfigError, match=r"reward\.path=.*: a language model"):
        ProcessRewardModel(path=str(NANO), step_separator=SPLIT, aggregate="min", micro_batch_tokens=64, dtype="fp32")


@pytest.mark.parametrize(("split", "message"), [("(", "not a regular expression"), (r"(\n)", r"write \(\?:\.\.\.\)")])
def test_split_must_be_an_expression_without_groups(prm, split, message):
    with pytest.raises(ConfigError, match=rf"^reward\.step_separator=.*{message}"):
        prm(step_separator=split)
