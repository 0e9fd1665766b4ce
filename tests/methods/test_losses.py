"""Each method's loss as a function of tensors: worked numbers."""

import math

import pytest
import torch

from postrain.methods.optim import lr_factor
from postrain.methods.ppo import clipped_value_loss, token_rewards
from postrain.methods.reward import bradley_terry, centring
from postrain.methods.sft import l2_distance
from postrain.ops import clipped_surrogate, explained_variance


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def test_bradley_terry():
    chosen, rejected = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.0, 0.0, 1.0])
    found = bradley_terry(chosen, rejected, torch.tensor([0.0, 0.0, 1.0]))
    # −ln σ(1) = ln(1 + e⁻¹) = 0.3133; −ln σ(0) = ln 2; a gap of 1 that was asked to be 1 is like no gap
    assert found.tolist() == pytest.approx([math.log(1 + math.exp(-1)), math.log(2), math.log(2)])
    # (1 + 0)², (0 + 0)², (2 + 1)²
    assert centring(chosen, rejected).tolist() == pytest.approx([1, 0, 9])


def test_policy_loss_is_clipped_only_where_clipping_is_pessimistic():
    ratios = tensor(math.log(1.5), math.log(0.5), math.log(1.5), math.log(0.5), 0.0)
    advantages = tensor(1.0, 1.0, -1.0, -1.0, 3.0)
    found = clipped_surrogate(ratios.exp(), advantages, 0.2, 0.2)
    # A > 0: −min(1.5, 1.2) = −1.2 and −min(0.5, 0.8) = −0.5; A < 0: −min(−1.5, −1.2) = 1.5 and −min(−0.5, −0.8) = 0.8
    assert found[0].tolist() == pytest.approx([-1.2, -0.5, 1.5, 0.8, -3.0])


def test_at_ratio_one_the_gradient_is_reinforces():
    logps = tensor(-1.0, -2.0).requires_grad_(True)
    advantages = tensor(0.7, -0.3)
    clipped_surrogate((logps - logps.detach()).exp(), advantages, 0.2, 0.2).sum().backward()
    # d(−A·exp(logp − old))/dlogp = −A
    assert logps.grad is not None
    assert logps.grad[0].tolist() == pytest.approx([-0.7, 0.3])


def test_value_loss_takes_the_worse_of_free_and_held():
    # old 0, clip 0.2: held value 0.2; target 1: ½ (0.5 − 1)² = 0.125 against ½ (0.2 − 1)² = 0.32
    assert clipped_value_loss(tensor(0.5), tensor(0.0), tensor(1.0), clip=0.2).item() == pytest.approx(0.32)
    # target 0: ½ 0.5² = 0.125 against ½ 0.2² = 0.02
    assert clipped_value_loss(tensor(0.5), tensor(0.0), tensor(0.0), clip=0.2).item() == pytest.approx(0.125)


def test_the_reward_lands_on_the_last_real_token():
    mask = torch.tensor([[True, True, False], [True, True, True]])
    kl = torch.tensor([[0.1, 0.2, 9.0], [0.0, 0.0, 0.5]])
    found = token_rewards(torch.tensor([1.0, 2.0]), kl, mask, kl_coef=0.5)
    # −0.5 · KL everywhere, plus 1 on the second token of the first row and 2 on the third of the second
    assert found[0].tolist() == pytest.approx([-0.05, 0.9, 0.0])
    assert found[1].tolist() == pytest.approx([0.0, 0.0, 1.75])


def test_l2_distance_is_zero_at_the_start():
    start = [torch.tensor([1.0, 2.0]), torch.tensor([[3.0]])]
    moved = [torch.tensor([1.0, 4.0]), torch.tensor([[2.0]])]
    # (4 − 2)² + (2 − 3)² = 5
    assert float(l2_distance(moved, start)) == 5
    assert float(l2_distance(start, start)) == 0


def test_the_schedule_rises_and_falls():
    # 10 updates, 20 % warm-up: ½, 1, then 8 updates down to 1/8 of the way from the end
    linear = [lr_factor("linear", update, 10, 0.2) for update in range(10)]
    assert linear == pytest.approx([0.5, 1.0, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    assert lr_factor("cosine", 6, 10, 0.2) == pytest.approx(0.5)
    assert [lr_factor("constant", update, 10, 0.0) for update in (0, 9)] == [1.0, 1.0]


def test_explained_variance():
    # returns 1 and 3: variance 1; predicting 2 leaves errors −1 and 1, predicting them or 5 and 7 errors that are equal
    assert float(explained_variance(torch.tensor(1.0), torch.tensor(1.0))) == 0
    assert float(explained_variance(torch.tensor(1.0), torch.tensor(0.0))) == 1
