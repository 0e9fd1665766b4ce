"""Supervised losses: worked numbers."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from postrain.errors import ConfigError
from postrain.losses.preference import alpha_reward, simpo
from postrain.losses.supervised import bradley_terry, dft, eaft, l2_distance, prm, sft, token_logps
from tests.methods.builders import make_method
from tests.tiny import tiny_model


def test_bradley_terry_loss_with_margin_and_centering():
    chosen, rejected = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.0, 0.0, 1.0])
    margin = torch.tensor([0.0, 0.0, 1.0])
    found = bradley_terry(chosen, rejected, margin, reduction="none")
    # −ln σ(1) = ln(1 + e⁻¹) = 0.3133; −ln σ(0) = ln 2; a gap of 1 with a margin of 1: −ln σ(0)
    assert found.tolist() == pytest.approx([math.log(1 + math.exp(-1)), math.log(2), math.log(2)])
    # (1 + 0)², (0 + 0)², (2 + 1)²
    centred = bradley_terry(chosen, rejected, margin, center_rewards_coefficient=0.5, reduction="none")
    assert (2 * (centred - found)).tolist() == pytest.approx([1, 0, 9], abs=1e-6)


def test_l2_distance_sums_squared_differences():
    initial = [torch.tensor([1.0, 2.0]), torch.tensor([[3.0]])]
    moved = [torch.tensor([1.0, 4.0]), torch.tensor([[2.0]])]
    # (4 − 2)² + (2 − 3)² = 5
    assert float(l2_distance(moved, initial)) == 5
    assert float(l2_distance(initial, initial)) == 0


def test_prm_is_binary_cross_entropy_of_each_step():
    logits = torch.tensor([[0.0, math.log(3), math.log(3)]], dtype=torch.float64)
    labels, mask = torch.tensor([[True, True, False]]), torch.ones(1, 3, dtype=torch.bool)
    # σ(ln 3) = 3/4: −ln ½, −ln ¾ for a right step, −ln ¼ for a wrong one
    found = prm(logits, labels, mask, reduction="none")
    assert found[0].tolist() == pytest.approx([math.log(2), math.log(4 / 3), math.log(4)])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.double(), reduction="none")
    torch.testing.assert_close(found, expected)


def test_token_logps_are_log_softmax_with_its_gradient():
    source = torch.Generator().manual_seed(0)
    logits_NV = torch.randn(5, 7, generator=source, dtype=torch.float64, requires_grad=True)
    targets_N = torch.tensor([0, 6, 3, 3, 1])
    expected_N = logits_NV.log_softmax(-1)[torch.arange(5), targets_N]
    assert torch.allclose(token_logps(logits_NV, targets_N), expected_N, atol=1e-12)
    assert gradcheck(lambda logits: token_logps(logits, targets_N), (logits_NV,))


def test_dft_weighs_a_token_by_its_probability():
    # −½ ln ½ and −¼ ln ¼; the gradient of log π is −π: ½ and ¼, over two tokens.
    logps, mask = torch.tensor([[0.5, 0.25, 0.9]]).log().requires_grad_(), torch.tensor([[True, True, False]])
    loss = dft(logps, mask)
    assert float(loss.detach()) == pytest.approx((0.5 * math.log(2) + 0.25 * math.log(4)) / 2)
    (gradient,) = torch.autograd.grad(loss, logps)
    assert gradient[0].tolist() == pytest.approx([-0.25, -0.125, 0])


def test_eaft_weighs_a_token_by_its_entropy_up_to_one():
    # Entropies ln 2 and ln 8 over ln 4: ½, and 1 instead of 1.5.
    logps, mask = torch.tensor([[-1.0, -3.0]]), torch.ones(1, 2, dtype=torch.bool)
    entropy = torch.tensor([[2.0, 8.0]]).log()
    assert eaft(logps, mask, entropy=entropy, top_k=4, reduction="none")[0].tolist() == pytest.approx([0.5, 3])
    # Entropies of at least ln top_k: the loss of SFT.
    assert float(eaft(logps, mask, entropy=entropy, top_k=2)) == float(sft(logps, mask))


def test_alpha_reward_bends_the_mean_log_probability():
    # p = ¼, α = ½: (1 − 4^½) / ½ = −2; α = −½: (1 − ¼^½) / −½ = −1; α → 0: ln ¼.
    mean = torch.tensor([1 / 4], dtype=torch.float64).log()
    assert [float(alpha_reward(mean, alpha)) for alpha in (0.5, -0.5)] == pytest.approx([-2, -1])
    assert float(alpha_reward(mean, 1e-9)) == pytest.approx(math.log(1 / 4))
    # −ln σ(β (−2 − r(1)) − γ) with r(1) = 0, β = 1, γ = 0.3: −ln σ(−2.3)
    found = simpo(mean, torch.zeros(1, dtype=torch.float64), beta=1.0, alpha=0.5)
    assert float(found) == pytest.approx(math.log(1 + math.exp(2.3)))


def test_eaft_needs_two_tokens_for_an_entropy():
    # ln 1 = 0 would divide by zero.
    with pytest.raises(ConfigError, match=r"method\.loss_options\.top_k: expected an integer >= 2, got 1"):
        make_method("sft", tiny_model(), loss="eaft", loss_options={"top_k": 1})
