"""Worked numbers for the maths that methods share."""

import math
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, get_ident

import pytest
import torch
from torch.autograd import gradcheck

from postrain.hardware import collectives
from postrain.ops import (
    RunningMean,
    adapt_kl_coef,
    clipped_surrogate,
    derive_seed,
    gae,
    kl_estimate,
    last_true,
    share_above,
    step_metrics,
    surrogate_clips,
    token_logps,
    whiten,
)


def test_seeds_depend_on_every_argument_and_on_nothing_else():
    seeds = {derive_seed(0, "rollout", 3, 1), derive_seed(1, "rollout", 3, 1), derive_seed(0, "dropout", 3, 1)}
    seeds |= {derive_seed(0, "rollout", 4, 1), derive_seed(0, "rollout", 3, 2), derive_seed(0, "rollout", 31)}
    assert len(seeds) == 6
    # blake2b of a fixed text: the same in every process and on every machine.
    assert derive_seed(0, "rollout", 3, 1) == derive_seed(0, "rollout", 3, 1)
    assert all(0 <= seed < 2**63 for seed in seeds)


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
    """What `function` gives each rank for its part; ranks are threads that wait for each other in every sum."""
    gate, box = Barrier(len(parts)), {}

    def all_sum(value):
        box[get_ident()] = value
        gate.wait()
        total = sum(box.values())
        gate.wait()
        return total

    monkeypatch.setattr(collectives, "all_sum", all_sum)
    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(function, parts))


@pytest.mark.parametrize("offset", [0.0, 1000.0, -30_000.0])
@pytest.mark.parametrize("ranks", [1, 2])
def test_whitening_survives_a_large_mean(offset, ranks, monkeypatch):
    values = offset + 0.1 * torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(values, dtype=torch.bool)
    expected = (values.double() - values.double().mean()) / values.double().std(correction=0)
    found = on_ranks(
        monkeypatch, lambda part: collectives.whiten_globally(part, mask[: len(part)]), values.chunk(ranks)
    )
    assert torch.allclose(torch.cat(found).double(), expected, atol=1e-4)
    assert float(torch.cat(found).std(correction=0)) == pytest.approx(1, abs=1e-4)


def test_kl_estimators_have_the_published_bias_and_spread():
    """Schulman's table for q = N(0.1, 1), p = N(0, 1), true KL 0.005, as shares of it."""
    x = torch.randn(4_000_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    logq, logp = -0.5 * (x - 0.1) ** 2, -0.5 * x**2
    true = 0.5 * 0.1**2
    found = {name: kl_estimate(logq, logp, name) for name in ("k1", "k2", "k3")}
    assert [float(found[k].mean() / true - 1) for k in found] == pytest.approx([0, 0.002, 0], abs=0.03)
    assert [float(found[k].std() / true) for k in found] == pytest.approx([20, 1.42, 1.42], rel=0.01)
    assert bool((found["k3"] >= 0).all())


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


def test_adaptive_kl_moves_by_at_most_a_fifth_of_its_share():
    # KL twice the target: clip(1, ±0.2) = 0.2; 0.1 · (1 + 0.2 · 100/1000) = 0.102
    assert adapt_kl_coef(0.1, 2.0, target=1.0, samples=100, horizon=1000) == pytest.approx(0.102)
    # KL 5 % under: −0.05 is inside the clip; 0.1 · (1 − 0.05 · 0.1) = 0.0995
    assert adapt_kl_coef(0.1, 0.95, target=1.0, samples=100, horizon=1000) == pytest.approx(0.0995)


def test_small_helpers():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert last_true(mask).tolist() == [1, 0]


def test_step_metrics_of_two_tokens():
    mask = torch.tensor([[True, True, False]])
    old = torch.zeros(1, 3)
    new = torch.tensor([[math.log(1.5), math.log(0.9), 5.0]])
    good, bad = (surrogate_clips(new.exp(), sign * torch.ones(1, 3), 0.2, 0.2) for sign in (1, -1))
    found = step_metrics(new - old, new.exp(), good, mask)
    # ratios 1.5 and 0.9: mean 1.2, one of two above 1.2, where a good token is clipped, and a bad one is not
    assert step_metrics(new - old, new.exp(), bad, mask)["clip_fraction"].value() == 0
    assert found["ratio/mean"].value() == pytest.approx(1.2)
    assert found["ratio/max"].value() == pytest.approx(1.5)
    assert found["clip_fraction"].value() == pytest.approx(0.5)
    # k3 of the old policy: (0.5 − ln 1.5 + (−0.1) − ln 0.9) / 2
    assert found["kl/step"].value() == pytest.approx((0.5 - math.log(1.5) - 0.1 - math.log(0.9)) / 2)


def test_the_surrogate_is_flat_exactly_where_it_is_said_to_clip():
    ratio = torch.linspace(0.05, 6.05, 61, dtype=torch.float64).repeat(3)[None].requires_grad_()
    advantages = torch.tensor([[1.0], [-1.0], [0.5]], dtype=torch.float64).repeat_interleave(61)[None]
    for ceiling in (math.inf, 4.0):
        loss = clipped_surrogate(ratio, advantages, 0.2, 0.3, ceiling)
        (gradient,) = torch.autograd.grad(loss.sum(), ratio)
        assert torch.equal(surrogate_clips(ratio, advantages, 0.2, 0.3, ceiling), gradient == 0)


def test_a_running_mean_starts_with_its_first_value():
    # momentum 0.9, values 5 and 2: (0.9 · 0.5 + 0.1 · 2) / (1 − 0.81) = 0.65 / 0.19
    assert RunningMean().value == 0
    one = RunningMean().after(5.0, 0.9)
    assert one.value == pytest.approx(5.0)
    assert one.after(2.0, 0.9).value == pytest.approx(0.65 / 0.19)
    assert RunningMean().after(5.0, 1.0).value == 0


def test_token_logps_are_log_softmax_with_its_gradient():
    source = torch.Generator().manual_seed(0)
    logits_NV = torch.randn(5, 7, generator=source, dtype=torch.float64, requires_grad=True)
    targets_N = torch.tensor([0, 6, 3, 3, 1])
    expected_N = logits_NV.log_softmax(-1)[torch.arange(5), targets_N]
    assert torch.allclose(token_logps(logits_NV, targets_N), expected_N, atol=1e-12)
    assert gradcheck(lambda logits: token_logps(logits, targets_N), (logits_NV,))


def test_equal_rewards_are_a_coin_flip():
    # one above, one below, one equal but for rounding: 1 + 0 + ½
    assert float(share_above(torch.tensor([0.3, -0.2, 2e-8]))) == 1.5
