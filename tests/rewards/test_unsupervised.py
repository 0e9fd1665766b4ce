"""unsupervised.py: agreement with the majority, and self-certainty."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from postrain.errors import ConfigError
from postrain.losses.divergence import kl_from_uniform
from postrain.models.self_certainty import self_certainty
from postrain.rewards.unsupervised import Majority, canonical_answer, majority
from postrain.types import Rows
from tests.methods.builders import make_method
from tests.tiny import tiny_model


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["7", "8", "7", None], [1, 0, 1, 0]),
        (["8", "7", None, None], [1, 0, 0, 0]),
        ([None, None], [None, None]),
        (["7"], [None]),
    ],
)
def test_majority_rewards_the_most_frequent_answer(answers: list[str | None], expected: list[float | None]) -> None:
    assert majority(answers) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is 7.00.", "7"),
        ("<answer>70</answer> and 8", "70"),
        (r"so \boxed{Paris.}", "paris"),
        (r"\boxed{\frac{3}{4}}", "0.75"),
        (r"\boxed{5\sqrt{3}}", r"5\sqrt{3}"),
        (r"\boxed{-\sqrt{2}}", r"-\sqrt{2}"),
        ("9" * 5000, "1" + 5000 * "0"),  # rounded to 28 digits
        ("no idea", None),
    ],
)
def test_canonical_answer_of_a_completion(text: str, expected: str | None) -> None:
    assert canonical_answer(text) == expected


def test_majority_is_counted_within_each_prompt() -> None:
    prompts = ["a", "a", "a", "b", "b", "c"]
    completions = ["7", "it is 7", "8", "1", "2", "7"]
    columns = [{"answer": "7"}] * 3 + [{"answer": "2"}] * 2 + [{"answer": "7"}]
    found = Majority()(prompts, completions, columns)
    # Prompt b: a tie, so its first answer 1, which is wrong. Prompt c: a single completion.
    assert found.parts["majority"] == (1.0, 1.0, 0.0, 1.0, 0.0, None)
    assert found.parts["majority_correct"] == (1.0, 1.0, 1.0, 0.0, 0.0, None)
    assert "majority_correct" not in Majority()(["a", "a"], ["7", "7"], [{}, {}]).parts


def test_kl_from_uniform_of_a_biased_coin() -> None:
    # Probabilities ¾ and ¼: −½ ln(¾ · ¼) − ln 2 = ½ ln(16/3) − ln 2 = ½ ln(4/3).
    logits = torch.tensor([[math.log(3.0), 0.0], [5.0, 5.0]])
    assert kl_from_uniform(logits).tolist() == pytest.approx([0.5 * math.log(4 / 3), 0.0], abs=1e-6)


def test_self_certainty_is_the_mean_over_supervised_tokens() -> None:
    model, ids = tiny_model(), (torch.arange(1, 8), torch.arange(3, 6))
    masks = (torch.arange(7) >= 3, torch.arange(3) >= 2)
    found = self_certainty(model, Rows(ids, masks, (0, 1)))
    for row, mask, value in zip(ids, masks, found, strict=True):
        with torch.no_grad():
            logps = model(row[None]).logits[0].log_softmax(-1)
        # −mean over the vocabulary of log(V · p), at the positions before the supervised tokens
        expected = -(logps[:-1][mask[1:]].mean(-1) + math.log(logps.shape[-1])).mean()
        assert float(value) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ppo", {}, "Majority compares the completions of a prompt, and PPO samples one"),
        ("grpo", {"advantage": "remax"}, "advantage=remax: scores a greedy completion alone, and Majority compares"),
    ],
)
def test_majority_is_refused_where_it_scores_single_completions(
    name: str, settings: dict[str, Any], message: str
) -> None:
    method = make_method(name, tiny_model(), **settings)
    with pytest.raises(ConfigError, match=message):
        method.check_reward(Majority(), None)
    make_method("grpo", tiny_model()).check_reward(Majority(), None)
