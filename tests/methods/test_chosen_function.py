"""Losses and advantages that a setting chooses: users' functions, and mistakes as one line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from postrain.errors import ConfigError
from postrain.methods.token_masks import drawn_tokens, over_all_ranks
from tests.methods.builders import flat_gradient, float64_model, make_method
from tests.methods.test_group_relative import rollout
from tests.methods.test_rollouts import prompts, scripted_method

CODE = """
import torch

def reinforce(logps, old_logps, advantages, mask, *, scale: float = 1.0):
    return -scale * advantages * logps

def needs(logps, old_logps, advantages, mask, *, scale):
    return -scale * advantages * logps

def two(a, b):
    return a

def total(logps, old_logps, advantages, mask):
    return logps.sum()

def constant(logps, old_logps, advantages, mask):
    return logps.detach()

def fails(logps, old_logps, advantages, mask):
    return logps[5]

def signed(logps, old_logps, advantages, mask):
    return -advantages / advantages.abs() * logps

def diverges(logps, old_logps, advantages, mask):
    return -advantages * logps / (logps - logps.detach())

def centred(rewards, batch_std):
    return (rewards - rewards.nanmean(1, keepdim=True)) / batch_std

def scaled(rewards):
    return (rewards - rewards.mean(1, keepdim=True)) / rewards.std(1, keepdim=True)

def mean(rewards):
    return rewards - rewards.mean(1, keepdim=True)

def ranks(rewards):
    return rewards.argsort(1).argsort(1).float()
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "mine.py").write_text(CODE)
    return f"{tmp_path}/mine.py"


def test_loss_of_a_user_is_that_of_the_update(file):
    batch, policy = rollout([1.0, -0.5, 2.0, 0.0])
    mine = make_method("grpo", policy, loss=f"{file}:reinforce", loss_options={"scale": 2.0}).loss_sum(batch)
    plain = flat_gradient(policy, make_method("grpo", policy).loss_sum(batch).total)
    assert torch.allclose(flat_gradient(policy, mine.total), 2 * plain, atol=1e-10)
    assert mine.metrics["ratio/max"].value() == pytest.approx(1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "gmppo"}, r"^method\.loss=gmppo: expected one of clipped, .*did you mean gmpo\?$"),
        ({"loss": "{file}:other"}, r"^method\.loss=.*has no function other$"),
        ({"loss": "{file}:two"}, r"expected a function of \(logps, old_logps, advantages, mask\)"),
        ({"loss": "{file}:needs"}, r"a value in method\.loss_options: missing a required argument: 'scale'$"),
        ({"loss": "{file}:total"}, r"expected a tensor \[B, T\] = \(2, 3\) or \[B, 1\] = \(2, 1\), got \(\)$"),
        ({"loss": "{file}:constant"}, r"got \(2, 3\) without a gradient$"),
        (
            {"loss": "{file}:diverges"},
            r"^method\.loss=.*:diverges: expected a finite loss with .*, got a loss of nan;",
        ),
        ({"loss": "{file}:fails"}, r"raised IndexError: .* at .*mine\.py:\d+$"),
        ({"loss": "sapo", "clip_low": 0.1}, r"^method\.clip_low: has no effect with method\.loss=sapo; leave it at"),
        ({"loss_options": {"tau": 1}}, r"^method\.loss_options\.tau: clipped has no such option; it has clip_low, "),
        ({"loss": "sapo", "loss_options": {"tau_pos": "x"}}, r"^method\.loss_options\.tau_pos: expected a number > 0"),
        ({"loss_options": {"delta": 1.1}}, r"^method\.loss=clipped: delta=1\.1: expected a bound above"),
        ({"advantage": "{file}:two"}, r"^method\.advantage=.*expected a function of \(rewards\)"),
        (
            {"advantage": "{file}:scaled"},
            r"^method\.advantage=.*:scaled: .* nan, nan, nan for the rewards 1, 1, 1; ",
        ),
        ({"advantage": "{file}:mean"}, r"got nan, nan, nan for the rewards 1, 0, nan; .* out of means \(nanmean\)$"),
        ({"advantage": "opo", "scale_rewards": "none"}, r"^method\.scale_rewards: has no effect with method\.advan"),
        ({"group_size": 1}, r"^method\.group_size=1: .*give at least 2$"),
    ],
)
def test_unusable_function_is_one_line(settings: Any, message, file):
    known: Any = {key: value.format(file=file) if isinstance(value, str) else value for key, value in settings.items()}
    with pytest.raises(ConfigError, match=message) as error:
        make_method("grpo", float64_model(), **known)
    assert "\n" not in str(error.value)


def test_loss_of_a_user_may_be_nan_outside_the_mask(file):
    # Advantages of ±1 over their absolute values: 0 / 0 at padding.
    batch, policy = rollout([1.0, -1.0, 1.0, -1.0])
    assert not batch.advantages_BT.all()
    mine = flat_gradient(policy, make_method("grpo", policy, loss=f"{file}:signed").loss_sum(batch).total)
    plain = flat_gradient(policy, make_method("grpo", policy).loss_sum(batch).total)
    assert torch.allclose(mine, plain, atol=1e-10)


def test_non_finite_advantages_of_an_update_name_the_setting(file):
    # All rewards of the batch are equal, so that batch_std is 0.
    method = scripted_method("grpo", [[1, 0]], {"1": 1.0}, advantage=f"{file}:centred")
    with pytest.raises(ConfigError, match=r"^method\.advantage=.*:centred: .*got nan, nan for the rewards 1, 1"):
        method.prepare(prompts(2))


def test_advantage_of_a_user_gets_the_rewards(file):
    completions = [[3, 0], [1, 0], [2, 0]]
    method = scripted_method(
        "grpo", completions, {"1": 1.0, "2": 2.0, "3": 3.0}, group_size=3, batch_size=1, advantage=f"{file}:ranks"
    )
    assert method.prepare(prompts(1)).advantages_BT[:, 0].tolist() == [2, 0, 1]


def test_remax_compares_with_a_greedy_completion_of_each_prompt(monkeypatch):
    # The engine returns its completions in order: those of the rollout, then the greedy ones.
    monkeypatch.setattr("postrain.methods.grpo.greedy", lambda engine: engine)
    completions = [[1, 0], [2, 0], [3, 0], [1, 0]]
    method = scripted_method(
        "grpo", completions, {"1": 1.0, "2": 2.0, "3": 3.0}, group_size=1, batch_size=2, advantage="remax"
    )
    # 1 − 3 and 2 − 1.
    assert method.prepare(prompts(2)).advantages_BT[:, 0].tolist() == [-2, 1]
    assert method.accumulated["reward/greedy"].value() == 2


def test_greedy_reward_is_logged_without_penalties(monkeypatch):
    monkeypatch.setattr("postrain.methods.grpo.greedy", lambda engine: engine)
    method = scripted_method(
        "grpo", [[1, 0], [3, 4]], {"1": 1.0, "3": 3.0}, group_size=1, batch_size=1, advantage="remax",
        missing_eos_penalty=0.5,
    )  # fmt: skip
    # The greedy completion is truncated: 1 − (3 − 0.5).
    assert method.prepare(prompts(1)).advantages_BT[:, 0].tolist() == [-1.5]
    assert method.accumulated["reward/greedy"].value() == 3


def test_greedy_completions_of_remax_have_seeds_of_their_own(monkeypatch):
    monkeypatch.setattr("postrain.methods.grpo.greedy", lambda engine: engine)
    method = scripted_method("grpo", [[1, 0]] * 6, {"1": 1.0}, group_size=1, batch_size=2, advantage="remax")
    sample, seeds = method.sample_and_score, []
    monkeypatch.setattr(
        method, "sample_and_score", lambda *given, **named: (seeds.extend(given[2]), sample(*given, **named))[1]
    )
    method.prepare(prompts(2))
    # Two completions and two greedy ones.
    assert len(set(seeds)) == len(seeds) == 4


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"missing_eos_penalty": 0.5}, "missing_eos_penalty"),
        ({"overlong_buffer": 2}, "overlong_buffer"),
        ({"kl_in": "reward", "kl_estimator": "k1", "kl_coef": 0.1}, "kl_coef"),
    ],
)
def test_penalties_of_estimators_that_cannot_use_them_are_refused(settings, key):
    for name, reason in {"maxrl": "makes rewards negative", "w_reinforce": "has no effect on w_reinforce un"}.items():
        with pytest.raises(ConfigError, match=rf"^method\.{key}: {reason}.*; set method\.{key}=0$"):
            scripted_method("grpo", [[1, 0]], {"1": 1.0}, advantage=name, **settings)


def test_random_numbers_of_tokens_do_not_depend_on_the_ranks():
    mask_BT = torch.tensor([[True, True, False], [True, True, True]])
    both = drawn_tokens(0, 5, [(0, 0), (3, 1)], mask_BT)
    alone = drawn_tokens(0, 5, [(3, 1)], mask_BT[1:])
    assert torch.equal(both[1:], alone)
    assert both[0, 2] == 0


def test_selection_reads_the_tokens_of_all_ranks(monkeypatch):
    # This rank is the second one: its tokens follow the three of the first.
    other = [torch.tensor([5.0, 1.0, 4.0])]
    monkeypatch.setattr("postrain.hardware.collectives.gather", lambda own: [other, own])
    monkeypatch.setattr("postrain.hardware.collectives.rank", lambda: 1)
    mask_BT = torch.tensor([[True, False], [True, True]])
    found = over_all_ranks(lambda values_N: values_N > values_N.mean(), mask_BT, torch.tensor([[2.0, 9], [6, 3]]))
    # Mean of 5, 1, 4, 2, 6, 3: 3.5.
    assert found.tolist() == [[False, False], [True, False]]


def test_clips_that_are_not_set_are_those_of_the_loss():
    batch, policy = rollout([1.0, -0.5, 2.0, -1.0])
    moved = replace(batch, logps_BT=batch.logps_BT - 0.3 * (batch.logps_BT != 0))
    for loss, low, high in (("clipped", 0.2, 0.2), ("gspo", 3e-4, 4e-4), ("gmpo", 0.4, 0.4)):
        unset, written = (
            make_method("grpo", policy, loss=loss, clip_low=clips[0], clip_high=clips[1]).loss_sum(moved).total
            for clips in ((None, None), (low, high))
        )
        assert torch.equal(unset, written)


def test_unscorable_rewards_do_not_reach_the_loss_through_a_users_advantage(file):
    """The second group is not selected. Its NaN stays in r − mean, and has no advantage."""
    method = scripted_method(
        "grpo",
        [[1, 0], [2, 0], [2, 0], [2, 0]],
        {"1": 1.0, "2": 0.0},
        advantage=f"{file}:centred",
        batch_size=1,
        group_size=2,
        dynamic_sampling=2,
    )
    found = method.prepare(prompts(2))
    assert not found.advantages_BT.isnan().any()


@pytest.mark.parametrize(("advantage", "kept"), [("group", [False]), ("w_reinforce", [True])])
def test_dynamic_sampling_keeps_equal_groups_of_estimators_that_learn_from_them(advantage, kept):
    method = make_method("grpo", float64_model(), advantage=advantage)
    assert method.has_gradient(torch.zeros(1, 4)).tolist() == kept
    assert method.has_gradient(torch.full((1, 4), torch.nan)).tolist() == [False]
