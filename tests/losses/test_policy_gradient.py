"""Importance ratios, surrogate losses and clipping: worked numbers."""

import math
from typing import Any

import pytest
import torch

from postrain.losses.policy_gradient import ppo_value, rloo
from postrain.losses.policy_losses import (
    cispo,
    clip_cov,
    clipped_surrogate,
    gmpo,
    importance_ratio,
    kl_cov,
    sapo,
    surrogate_clips,
)
from postrain.losses.token_selection import clip_cov_tokens, kl_cov_tokens, top_entropy_tokens

CLIP: Any = {"clip_low": 0.2, "clip_high": 0.2}
HIGHER: Any = {"clip_low": 0.2, "clip_high": 0.28}


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def test_importance_ratio_per_token_and_per_sequence():
    log_ratio_BT = torch.tensor([[math.log(2), math.log(8), 0.0]])
    mask_BT = torch.tensor([[True, True, False]])
    assert importance_ratio(log_ratio_BT, mask_BT)[0, :2].tolist() == pytest.approx([2, 8])
    # The geometric mean of 2 and 8.
    assert importance_ratio(log_ratio_BT, mask_BT, "sequence").tolist() == [[pytest.approx(4)]]


def test_clipped_surrogate_bounds_positive_advantages_and_delta_negative_ones():
    ratio_BT = torch.tensor([[0.5, 1.0, 1.5, 10.0]])
    plus, minus = torch.ones(1, 4), -torch.ones(1, 4)
    # A > 0: the upper clip bounds the gain. A < 0: only the lower clip applies, so that a ratio of 10 is not clipped.
    assert clipped_surrogate(ratio_BT, plus, **HIGHER).tolist()[0] == pytest.approx([-0.5, -1.0, -1.28, -1.28])
    assert clipped_surrogate(ratio_BT, minus, **HIGHER).tolist()[0] == pytest.approx([0.8, 1.0, 1.5, 10.0])
    assert clipped_surrogate(ratio_BT, minus, **HIGHER, delta=4.0).tolist()[0] == pytest.approx([0.8, 1.0, 1.5, 4.0])


def test_cispo_keeps_every_gradient():
    logps_BT = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    # Ratios 0.1 and 5 are clipped to 0.8 and 1.2; the gradient is -ratio · A.
    old_BT = logps_BT.detach() - torch.tensor([[0.1, 5.0]]).log()
    loss_BT = cispo(logps_BT, old_BT, torch.tensor([[1.0, -2.0]]), torch.tensor([[True, True]])).loss_BT
    assert loss_BT.tolist() == [pytest.approx([0.8, -4.8])]
    (gradient,) = torch.autograd.grad(loss_BT.sum(), logps_BT)
    assert gradient.tolist() == [pytest.approx([-0.8, 2.4])]


def test_rloo_ratio_is_that_of_the_whole_completion():
    # Log-ratios 0.1 + 0.2, the third token is padding: r = e^0.3 = 1.35, clipped to 1.2 for A = 2.
    mask_BT = torch.tensor([[True, True, False]])
    ratio_B1 = importance_ratio(torch.tensor([[0.1, 0.2, 5.0]]), mask_BT, "completion")
    assert ratio_B1.tolist() == [[pytest.approx(math.exp(0.3))]]
    assert clipped_surrogate(ratio_B1, torch.tensor([[2.0]]), **CLIP).tolist() == [[pytest.approx(-2.4)]]


@pytest.mark.parametrize(("advantage", "value"), [(1.0, -1.2), (-1.0, math.exp(20))])
def test_rloo_gradient_is_finite_where_the_ratio_of_a_long_completion_overflows(advantage, value):
    # 100 tokens of 1 nat each: e^100 exceeds float32. The clip at 1.2 bounds the gain, e^20 the loss.
    old_BT, mask_BT = torch.full((1, 100), -1.1), torch.ones(1, 100, dtype=torch.bool)
    logps_BT = (old_BT + 1).requires_grad_()
    loss = rloo(logps_BT, old_BT, torch.tensor([advantage]), mask_BT)
    assert float(loss) == pytest.approx(value)
    assert torch.equal(torch.autograd.grad(loss, logps_BT)[0], torch.zeros(1, 100))


def test_policy_loss_is_clipped_only_where_clipping_is_pessimistic():
    ratios = tensor(math.log(1.5), math.log(0.5), math.log(1.5), math.log(0.5), 0.0)
    advantages = tensor(1.0, 1.0, -1.0, -1.0, 3.0)
    found = clipped_surrogate(ratios.exp(), advantages, **CLIP)
    # A > 0: −min(1.5, 1.2) = −1.2 and −min(0.5, 0.8) = −0.5; A < 0: −min(−1.5, −1.2) = 1.5 and −min(−0.5, −0.8) = 0.8
    assert found[0].tolist() == pytest.approx([-1.2, -0.5, 1.5, 0.8, -3.0])


def test_gradient_at_ratio_one_is_reinforce():
    logps = tensor(-1.0, -2.0).requires_grad_(True)
    advantages = tensor(0.7, -0.3)
    clipped_surrogate((logps - logps.detach()).exp(), advantages, **CLIP).sum().backward()
    # d(−A·exp(logp − old))/dlogp = −A
    assert logps.grad is not None
    assert logps.grad[0].tolist() == pytest.approx([-0.7, 0.3])


def test_value_loss_is_the_maximum_of_unclipped_and_clipped():
    one = torch.tensor([[True]])
    # old 0, clip 0.2: clipped value 0.2; target 1: ½ (0.5 − 1)² = 0.125 against ½ (0.2 − 1)² = 0.32
    assert ppo_value(tensor(0.5), tensor(0.0), tensor(1.0), one, clip=0.2).item() == pytest.approx(0.32)
    # target 0: ½ 0.5² = 0.125 against ½ 0.2² = 0.02
    assert ppo_value(tensor(0.5), tensor(0.0), tensor(0.0), one, clip=0.2).item() == pytest.approx(0.125)


def test_surrogate_clips_is_true_exactly_where_the_surrogate_is_flat():
    ratio = torch.linspace(0.05, 6.05, 61, dtype=torch.float64).repeat(3)[None].requires_grad_()
    advantages = torch.tensor([[1.0], [-1.0], [0.5]], dtype=torch.float64).repeat_interleave(61)[None]
    for delta in (None, 4.0):
        loss = clipped_surrogate(ratio, advantages, clip_low=0.2, clip_high=0.3, delta=delta)
        (gradient,) = torch.autograd.grad(loss.sum(), ratio)
        assert torch.equal(surrogate_clips(ratio, advantages, clip_low=0.2, clip_high=0.3, delta=delta), gradient == 0)


# Two completions of two tokens, A = 1 and −1.
SIGNS = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
ALL = torch.ones(2, 2, dtype=torch.bool)


def test_gmpo_is_the_geometric_mean_of_the_clipped_ratios():
    logps_BT = torch.tensor([[0.6, 0.2], [-0.9, 0.1]], requires_grad=True)
    # A > 0: log-ratios 0.6 → 0.4 and 0.2, mean 0.3. A < 0: −0.9 → −0.4 and 0.1, mean −0.15.
    found = gmpo(logps_BT, torch.zeros(2, 2), SIGNS, ALL)
    first, second = math.exp(0.3), math.exp(-0.15)
    assert found.loss_BT.tolist() == [pytest.approx([-first] * 2), pytest.approx([second] * 2)]
    assert found.clipped_BT.tolist() == [[True, False], [True, False]]
    # A token that is not clipped has −A · s / length; the mean over the two copies of the loss keeps it.
    (gradient_BT,) = torch.autograd.grad(found.loss_BT.mean(1).sum(), logps_BT)
    assert gradient_BT.tolist() == [pytest.approx([0, -first / 2]), pytest.approx([0, second / 2])]


def test_sapo_gates_the_ratio_with_a_temperature_for_each_sign():
    logps_BT = torch.tensor([[1.5, 1.0], [0.5, 1.0]]).log().requires_grad_()
    # A > 0: 4 σ(0.5) = 4 · 0.622459. A < 0: 4 / 1.05 · σ(−0.525) = 3.809524 · 0.371684. At r = 1: 4 / τ · ½.
    loss_BT = sapo(logps_BT, torch.zeros(2, 2), SIGNS, ALL).loss_BT
    assert loss_BT.tolist() == [pytest.approx([-2.489837, -2.0], rel=1e-5), pytest.approx([1.415938, 2 / 1.05])]
    # d/dlog r = 4 σ(1 − σ) r: at r = 1.5, 4 · 0.622459 · 0.377541 · 1.5.
    (gradient_BT,) = torch.autograd.grad(loss_BT.sum(), logps_BT)
    assert gradient_BT[0].tolist() == pytest.approx([-1.410022, -1.0], rel=1e-5)


def test_clip_cov_gives_no_gradient_to_the_selected_token():
    logps_BT, selected_BT = torch.zeros(2, 2, requires_grad=True), torch.tensor([[True, False], [False, False]])
    found = clip_cov(logps_BT, torch.zeros(2, 2), SIGNS, ALL, selected=selected_BT)
    (gradient_BT,) = torch.autograd.grad(found.loss_BT.sum(), logps_BT)
    assert gradient_BT.tolist() == [[0, -1], [1, 1]]
    assert torch.equal(found.clipped_BT, selected_BT)


def test_kl_cov_adds_the_absolute_log_ratio_of_the_selected_token():
    logps_BT, selected_BT = torch.full((2, 2), 0.2), torch.tensor([[True, False], [False, False]])
    # −e^0.2 + 0.5 · 0.2 for the selected one, ∓e^0.2 for the others.
    found = kl_cov(logps_BT, torch.zeros(2, 2), SIGNS, ALL, selected=selected_BT, ppo_kl_coef=0.5).loss_BT
    ratio = math.exp(0.2)
    assert found.tolist() == [pytest.approx([-ratio + 0.1, -ratio]), pytest.approx([ratio, ratio])]


def test_tokens_are_selected_by_covariance():
    # log π − mean = 1, 0, −1, 0; A − mean = 3, 0, −3, 0: covariances 3, 0, 3, 0.
    logps, advantages = torch.tensor([-1.0, -2, -3, -2]), torch.tensor([3.0, 0, -3, 0])
    uniform = torch.tensor([0.9, 0.1, 0.4, 0.2])
    # One of four tokens: of the two within (1, 5), the one with the smaller random number.
    drawn = clip_cov_tokens(logps, advantages, uniform, clip_cov_ratio=0.25)
    assert drawn.tolist() == [False, False, True, False]
    assert not clip_cov_tokens(logps, advantages, uniform, clip_cov_ratio=1.0, clip_cov_lb=3.0).any()
    # A − mean = 3, 0, −1, −2: covariances 3, 0, 1, 0.
    for share, expected in ((0.25, [True, False, False, False]), (0.5, [True, False, True, False])):
        assert kl_cov_tokens(logps, torch.tensor([3.0, 0, -1, -2]), uniform, kl_cov_ratio=share).tolist() == expected


def test_top_entropy_tokens_are_the_share_with_the_highest_entropy():
    # 40 % of five tokens.
    entropy = torch.tensor([0.1, 2.0, 0.3, 1.0, 0.2])
    assert top_entropy_tokens(entropy, 0.4).tolist() == [False, True, False, True, False]
