"""Advantages: whitening, generalized advantage estimation, group baselines; worked numbers."""

import math
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, get_ident

import pytest
import torch

from postrain.hardware import collectives
from postrain.losses.advantages import (
    batch_advantages,
    gae,
    group_advantages,
    group_centred,
    group_std,
    has_variance,
    last_token,
    leave_one_out,
    maxrl_advantages,
    nash_md_advantages,
    normalize_then_sum,
    opo_advantages,
    overlong_penalty,
    remax_advantages,
    reward_to_go,
    token_rewards,
    turn_returns,
    w_reinforce_advantages,
    whiten,
)
from postrain.methods.grpo import batch_moments

NAN = float("nan")


def test_whitening_without_mean_shift_gives_the_reference_numbers():
    values = torch.tensor([[1.2, 1.3, 1.4], [1.5, 1.6, 1.7], [1.8, 1.9, 2.0]])
    mask = torch.ones(3, 3, dtype=torch.bool)
    mean, variance, count = collectives.moments(values, mask)
    assert count == 9
    # mean 1.6, population variance (0.4² + 0.3² + 0.2² + 0.1²) · 2 / 9 = 0.0667; (1.2 − 1.6) / 0.2582 + 1.6 = 0.0508
    assert float(variance) == pytest.approx(0.6 / 9, abs=1e-6)
    whitened = whiten(values, mask, mean=mean, variance=variance, shift_mean=False)
    assert whitened[0].tolist() == pytest.approx([0.0508, 0.4381, 0.8254], abs=1e-4)
    shifted = whiten(values, mask, mean=mean, variance=variance)
    assert shifted.mean() == pytest.approx(0, abs=1e-5)
    assert shifted.var(correction=0) == pytest.approx(1, abs=1e-4)


def test_whitening_is_zero_outside_the_mask():
    mask = torch.tensor([[True, True, False]])
    # mean 2, variance 10/2 − 4 = 1
    for outside in (100.0, math.nan):
        found = collectives.whiten_globally(torch.tensor([[1.0, 3.0, outside]]), mask)
        assert found[0].tolist() == pytest.approx([-1.0, 1.0, 0.0])
    assert collectives.whiten_globally(torch.ones(1, 3), torch.zeros(1, 3, dtype=torch.bool)).tolist() == [[0, 0, 0]]


def on_ranks(monkeypatch, function, parts):
    """The results of `function` for the part of each rank. Ranks are threads that synchronise in every sum."""
    barrier, values = Barrier(len(parts)), {}

    def all_sum(value):
        values[get_ident()] = value
        barrier.wait()
        total = sum(values.values())
        barrier.wait()
        return total

    monkeypatch.setattr(collectives, "all_sum", all_sum)
    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(function, parts))


@pytest.mark.parametrize("offset", [0.0, 1000.0, -30_000.0])
@pytest.mark.parametrize("ranks", [1, 2])
def test_whitening_is_exact_for_a_large_mean(offset, ranks, monkeypatch):
    values = offset + 0.1 * torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(values, dtype=torch.bool)
    expected = (values.double() - values.double().mean()) / values.double().std(correction=0)
    found = on_ranks(
        monkeypatch, lambda part: collectives.whiten_globally(part, mask[: len(part)]), values.chunk(ranks)
    )
    assert torch.allclose(torch.cat(found).double(), expected, atol=1e-4)
    assert float(torch.cat(found).std(correction=0)) == pytest.approx(1, abs=1e-4)


def test_gae_of_a_two_token_episode():
    rewards = torch.tensor([[0.0, 1.0, 9.0]])
    values = torch.tensor([[0.5, 0.25, 7.0]])
    mask = torch.tensor([[True, True, False]])
    # γ = 0.9, λ = 0.5; last token: δ₁ = 1 + 0 − 0.25 = 0.75
    # first token: δ₀ = 0 + 0.9 · 0.25 − 0.5 = −0.275; A₀ = −0.275 + 0.9 · 0.5 · 0.75 = 0.0625
    advantages = gae(rewards, values, mask, gamma=0.9, lam=0.5)
    assert advantages[0].tolist() == pytest.approx([0.0625, 0.75, 0.0])


def test_gae_with_lambda_one_is_return_minus_value():
    generator = torch.Generator().manual_seed(1)
    rewards, values = (torch.randn(4, 6, generator=generator) for _ in range(2))
    lengths = torch.tensor([6, 1, 4, 3])
    mask = torch.arange(6)[None] < lengths[:, None]
    returns = (rewards * mask).flip(1).cumsum(1).flip(1)
    expected = (returns - values) * mask
    assert torch.allclose(gae(rewards, values, mask, gamma=1.0, lam=1.0), expected, atol=1e-6)


def test_last_token_is_that_of_the_mask():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert last_token(mask).tolist() == [1, 0]


def test_rloo_baseline_is_the_mean_of_the_others():
    # Four samples for each of three prompts. First prompt, 1, 2, 5, 8: 1 - (2 + 5 + 8) / 3 = -4.
    # Second prompt, 2, 3, 6, 9: 6 - (2 + 3 + 9) / 3 = 1.3333.
    samples = torch.tensor([[1.0, 2, 3], [2, 3, 4], [5, 6, 7], [8, 9, 10]])
    found = leave_one_out(samples.T).T.flatten()
    assert found[0] == pytest.approx(-4)
    assert found[7] == pytest.approx(1.3333, abs=1e-4)


def test_unscorable_reward_is_not_in_the_baseline_and_has_zero_advantage():
    # Scored: 1 and 4, mean 2.5; leave one out: 1 - 4 and 4 - 1.
    reward_PG = torch.tensor([[1.0, NAN, 4.0], [NAN, NAN, NAN], [NAN, 2.0, NAN]])
    assert group_centred(reward_PG).tolist() == [[-1.5, 0, 1.5], [0, 0, 0], [0, 0, 0]]
    assert leave_one_out(reward_PG).tolist() == [[-3, 0, 3], [0, 0, 0], [0, 0, 0]]
    assert has_variance(reward_PG).tolist() == [True, False, False]


def test_equal_rewards_have_no_variance_despite_rounding():
    reward_PG = torch.tensor([[100.1] * 8, [100.1] * 7 + [100.2]])
    assert has_variance(reward_PG).tolist() == [False, True]
    assert not group_centred(reward_PG)[0].any()
    # A group of one has a gradient if its reward is scorable: its baseline is that of the batch.
    assert has_variance(torch.tensor([[1.0], [NAN]])).tolist() == [True, False]


def test_batch_moments_are_exact_for_large_rewards():
    # offset ± 0.125: the variance over n - 1 = 3 is 4 · 0.125² / 3.
    for offset in (0.0, 1000.0, 1_000_000.0):
        found = batch_moments(offset + torch.tensor([[0.125, -0.125], [-0.125, 0.125]]))[1]
        assert float(found) == pytest.approx(math.sqrt(4 * 0.125**2 / 3), rel=1e-9)
    assert float(batch_moments(torch.full((2, 2), NAN))[1]) == 0


@pytest.mark.parametrize("offset", [0.0, 1000.0, 1_000_000.0])
def test_group_advantages_are_exact_for_large_rewards(offset):
    # Mean 0.0625 of 0.125, -0.125, 0.125, 0.125: 0.0625 three times and -0.1875; squares 3 · 0.0625² + 0.1875², over 3.
    reward_PG = offset + torch.tensor([[0.125, -0.125, 0.125, 0.125]])
    assert group_centred(reward_PG).tolist() == [[0.0625, -0.1875, 0.0625, 0.0625]]
    assert leave_one_out(reward_PG)[0].tolist() == pytest.approx([0.25 / 3, -0.25, 0.25 / 3, 0.25 / 3], rel=1e-6)
    assert float(group_std(reward_PG)) == pytest.approx(0.125, rel=1e-6)


def test_group_advantages_of_each_scale():
    # Group 1: mean 2, squares 1 + 0 + 1 over n - 1 = 2: 1. Group 2: all 5: 0. A lone scored reward: 0.
    reward_PG = torch.tensor([[1.0, 2, 3], [5, 5, 5], [NAN, 7, NAN]])
    assert group_std(reward_PG).flatten().tolist() == [1, 0, 0]
    # All seven scored: sum 28, squares 14 + 75 + 49 = 138, variance (138 - 28² / 7) / 6 = 26 / 6.
    assert batch_moments(reward_PG)[1] == pytest.approx(math.sqrt(26 / 6))
    assert group_advantages(reward_PG)[0].tolist() == pytest.approx([-1 / 1.0001, 0, 1 / 1.0001])
    for std in (None, batch_moments(reward_PG)[1]):
        found = group_advantages(reward_PG, scale="batch", batch_std=std)
        assert (found[0] * (math.sqrt(26 / 6) + 1e-4)).tolist() == pytest.approx([-1, 0, 1])
    assert group_advantages(reward_PG, scale="none")[0].tolist() == [-1, 0, 1]


def test_correction_of_known_errors_of_a_verifier_changes_no_advantage():
    # E[r] = ρ0 + (1 − ρ0 − ρ1) · clean reward, so (r − ρ0) / (1 − ρ0 − ρ1) is unbiased; it is a line in r.
    reward_PG, false_positive, false_negative = torch.tensor([[1.0, 0, 0, 1], [1, 1, 1, 0]]), 0.25, 0.25
    factor = 1 - false_positive - false_negative
    corrected_PG = (reward_PG - false_positive) / factor
    assert corrected_PG.tolist() == [[1.5, -0.5, -0.5, 1.5], [1.5, 1.5, 1.5, -0.5]]
    centred = group_advantages(reward_PG, scale="none")
    assert group_advantages(corrected_PG, scale="none").tolist() == (centred / factor).tolist()
    assert torch.allclose(leave_one_out(corrected_PG), leave_one_out(reward_PG) / factor)
    # Up to the 1e-4 that is added to the standard deviation of 0.58 or 0.5.
    assert torch.allclose(group_advantages(corrected_PG), group_advantages(reward_PG), rtol=2e-4)


def test_normalize_then_sum_separates_rewards_that_their_sum_confuses():
    rewards_KPG = torch.tensor([[[1.0, 0], [0, 0]], [[1, 0], [3, 1]]])
    weights_K = torch.tensor([1.0, 0.5])
    # Two rewards of a group of two differ from their mean by half their difference d, with standard deviation d / √2:
    # ±1/√2 each. Group 1: (1 + 0.5) / √2. Group 2: the first reward is constant, so only 0.5 / √2.
    summed_PG = normalize_then_sum(rewards_KPG, weights_K)
    expected = [1.5 / math.sqrt(2), -1.5 / math.sqrt(2), 0.5 / math.sqrt(2), -0.5 / math.sqrt(2)]
    assert summed_PG.flatten().tolist() == pytest.approx(expected, rel=3e-4)
    # Mean 0; squares 2 · 1.125 + 2 · 0.125 = 2.5 over n - 1 = 3.
    mean, std = batch_moments(summed_PG)
    assert float(std) == pytest.approx(math.sqrt(2.5 / 3), rel=3e-4)
    found = batch_advantages(summed_PG, mean=mean, std=std).flatten().tolist()
    assert found == pytest.approx([1.161895, -1.161895, 0.387298, -0.387298], rel=5e-4)
    # The advantages of the sums 1.5, 0 and 1.5, 0.5 are equal.
    first, second = group_advantages(torch.tensordot(weights_K, rewards_KPG, 1)).tolist()
    assert first == pytest.approx(second, rel=3e-4)


def test_normalize_then_sum_counts_missing_rewards_as_their_mean():
    # Reward 1 is missing for the third completion: 0 there. All are missing for the fourth: NaN, advantage 0.
    rewards_KPG = torch.tensor([[[1.0, 0, NAN, NAN]], [[0, 0, 0, NAN]]])
    summed_PG = normalize_then_sum(rewards_KPG, torch.tensor([2.0, 1.0]))
    assert summed_PG[0, :3].tolist() == pytest.approx([math.sqrt(2), -math.sqrt(2), 0], rel=3e-4)
    mean, std = batch_moments(summed_PG)
    # Squares 2 + 2 + 0 over n - 1 = 2: √2.
    assert batch_advantages(summed_PG, mean=mean, std=std)[0].tolist() == pytest.approx([1, -1, 0, 0], rel=3e-4)


def test_overlong_penalty_falls_over_the_buffer():
    # Limit 20, buffer 8: 0 up to 12 tokens, then 1/8 per token.
    assert overlong_penalty(torch.tensor([5, 12, 14, 20]), limit=20, buffer=8).tolist() == pytest.approx(
        [0, 0, -0.25, -1]
    )


def test_reward_to_go_sums_the_later_rewards():
    assert reward_to_go(torch.tensor([[1.0, 2.0, 4.0]])).tolist() == [[7, 6, 4]]


def test_turn_returns_are_the_rewards_of_a_turn_and_later_ones():
    """0.5 and 0.25 of two turns and 1.25 of a reward function; an episode of one turn."""
    rewards_BK = torch.tensor([[0.5, 0.25], [1.0, torch.nan]])
    assert turn_returns(rewards_BK, torch.tensor([1.25, 0.0])).nan_to_num(-1).tolist() == [[2.0, 1.5], [1.0, -1.0]]


def test_reward_is_added_at_the_last_token_of_the_mask():
    mask = torch.tensor([[True, True, False], [True, True, True]])
    kl = torch.tensor([[0.1, 0.2, 9.0], [0.0, 0.0, 0.5]])
    found = token_rewards(torch.tensor([1.0, 2.0]), kl, mask, kl_coef=0.5)
    # −0.5 · KL everywhere, plus 1 on the second token of the first row and 2 on the third of the second
    assert found[0].tolist() == pytest.approx([-0.05, 0.9, 0.0])
    assert found[1].tolist() == pytest.approx([0.0, 0.0, 1.75])


def test_nash_md_advantages_are_the_win_rate_less_half_and_the_kl():
    # Win rate 0.8 - ½ = 0.3; log-ratios 0.1 and 0.2, β = ½: 0.3 - ½ · 0.3 and 0.3 - ½ · 0.2. Unscorable: 0 less the KL.
    log_ratio_BT = torch.tensor([[0.1, 0.2, 9.0], [0.4, 0.0, 0.0]])
    mask_BT = torch.tensor([[True, True, False], [True, False, False]])
    found = nash_md_advantages(torch.tensor([0.8, NAN]), log_ratio_BT, mask_BT, beta=0.5)
    assert found.tolist() == [pytest.approx([0.15, 0.2, 0.0]), pytest.approx([-0.2, 0.0, 0.0])]


def test_opo_baseline_is_the_mean_reward_weighted_by_length():
    # (1 · 1 + 3 · 0) / 4 = 0.25. The unscorable completion of 9 tokens is left out: (2 · 1 + 2 · 0) / 4 = 0.5.
    rewards = torch.tensor([[1.0, 0, NAN], [1, 0, NAN]])
    found = opo_advantages(rewards, torch.tensor([[1, 3, 0], [2, 2, 9]]))
    assert found.tolist() == [[0.75, -0.25, 0], [0.5, -0.5, 0]]


def test_maxrl_divides_by_the_pass_rate():
    # Pass rate ¼: 0.75 / 0.25 and −0.25 / 0.25. No right completion: 0.
    assert maxrl_advantages(torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, NAN]])).tolist() == [[3, -1, -1, -1], [0] * 4]
    with pytest.raises(ValueError, match="at least 0"):
        maxrl_advantages(torch.tensor([[-1.0, 1.0]]))


def test_remax_subtracts_the_greedy_reward():
    found = remax_advantages(torch.tensor([[1.0, 0.25], [NAN, 1]]), torch.tensor([0.5, NAN]))
    assert found.tolist() == [[0.5, -0.25], [0, 0]]


def test_w_reinforce_weighs_right_and_wrong_completions():
    rewards = torch.tensor([[1.0, 0.0, NAN]])
    for options, expected in (({}, [0.1, -1, 0]), ({"positive": 1, "negative": 0}, [1, 0, 0])):
        assert w_reinforce_advantages(rewards, **options)[0].tolist() == pytest.approx(expected)


def test_lambda_of_the_critic_changes_only_its_returns():
    # λ = 0: A_0 = 0 + 0.25 − 0.5, one step. λ = 1: the return, 1, minus the value.
    rewards, values, mask = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.25]]), torch.ones(1, 2).bool()
    assert gae(rewards, values, mask, lam=0.0)[0].tolist() == [-0.25, 0.75]
    assert (gae(rewards, values, mask, lam=1.0) + values)[0].tolist() == [1, 1]
