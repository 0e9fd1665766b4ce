"""Inputs of the DPO losses: divergences, length desensitisation and the table of losses. Losses are finite for extreme
log-ratios."""

from __future__ import annotations

from math import log
from typing import get_args

import pytest
import torch
from torch import Tensor

from postrain.losses.dpo_variants import (
    LOSSES,
    RANKED,
    SMOOTHED,
    Divergence,
    LossName,
    PairTerms,
    apo_down,
    apo_zero,
    bco,
    discopop,
    exo,
    f_prime,
    hinge,
    ipo,
    length_desensitised,
    nca,
    robust,
    sigmoid,
    sppo_hard,
)
from tests.losses.test_dpo_variants import random, slope, tensor


@pytest.mark.parametrize(
    ("divergence", "expected", "slope_at_1"),
    [
        # u = 2: ln 2; 1 − ½; ln(4/3); (1 − 2^−½) / ½ = 2 − √2. The slope in ln u is f″(1): 1, 1, ½, 1.
        ("reverse_kl", log(2), 1.0),
        ("forward_kl", 0.5, 1.0),
        ("js", log(4 / 3), 0.5),
        ("alpha", 2 - 2**0.5, 1.0),
    ],
)
def test_f_prime_of_each_divergence(divergence, expected, slope_at_1):
    def of(log_ratio: Tensor) -> Tensor:
        return f_prime(log_ratio, divergence, 0.5)

    assert of(tensor(0.0, log(2))).tolist() == pytest.approx([0, expected])
    assert slope(of, 0) == pytest.approx([slope_at_1])
    ordered = of(torch.linspace(-9, 9, 50, dtype=torch.float64))
    assert (ordered.diff() > 0).all()


def test_alpha_divergence_tends_to_reverse_kl_at_0_and_forward_kl_at_1():
    log_ratio = random(20, 0, scale=1.0)
    near_0, near_1 = (f_prime(log_ratio, "alpha", alpha) for alpha in (1e-7, 1 - 1e-7))
    assert torch.allclose(near_0, f_prime(log_ratio, "reverse_kl", 0.5), atol=1e-5)
    assert torch.allclose(near_1, f_prime(log_ratio, "forward_kl", 0.5), atol=1e-5)


def test_length_desensitised_scales_tokens_beyond_the_common_length():
    logps = tensor(-1, -2, -4, 0, -8, -16, -32, 0).view(2, 4)
    mask = torch.tensor([[True, True, True, False], [True, True, True, False]])
    # common length 2, α = ¼: −1 − 2 − 4 / 4 = −4; common length 3: −8 − 16 − 32
    found = length_desensitised(logps, mask, torch.tensor([2, 5]), 0.25)
    assert found.tolist() == pytest.approx([-4, -56])
    assert torch.equal(length_desensitised(logps, mask, torch.tensor([2, 1]), 1.0), logps.sum(1))
    # α = 0 drops the tokens beyond the common length: −1 − 2, −8
    assert length_desensitised(logps, mask, torch.tensor([2, 1]), 0.0).tolist() == [-3, -8]


def test_length_desensitised_is_the_sum_for_equal_lengths():
    logps, mask = random(12, 0).view(3, 4), torch.ones(3, 4, dtype=torch.bool)
    assert torch.equal(length_desensitised(logps, mask, torch.tensor([4, 4, 4]), 0.3), logps.sum(1))


def terms(chosen: Tensor, rejected: Tensor, *, smoothing: float = 0.1, shift: float = 0.3) -> PairTerms:
    """Terms of pairs of 10 tokens each with reference log-probabilities of 0."""
    return PairTerms(
        chosen_B=chosen,
        rejected_B=rejected,
        chosen_mean_B=chosen / 10,
        rejected_mean_B=rejected / 10,
        margin_B=chosen - rejected,
        ref_margin_of_rank_B=torch.zeros_like(chosen),
        chosen_of_rank_B=chosen.detach(),
        rejected_of_rank_B=rejected.detach(),
        beta=0.7,
        smoothing=smoothing,
        tau=0.05,
        shift=shift,
    )


def test_table_lists_every_loss_name():
    assert set(LOSSES) == set(get_args(LossName))
    assert set(LOSSES) >= SMOOTHED | RANKED


@pytest.mark.parametrize("name", LOSSES)
def test_table_passes_each_loss_its_arguments(name):
    c, r = random(6, 1), random(6, 2)
    expected = {
        "sigmoid": sigmoid(c - r, beta=0.7, smoothing=0.1),
        "sigmoid_norm": sigmoid((c - r) / 10, beta=0.7, smoothing=0.1),
        "robust": robust(c - r, beta=0.7, smoothing=0.1),
        "hinge": hinge(c - r, beta=0.7),
        "ipo": ipo(c / 10, r / 10, beta=0.7),
        "sppo_hard": sppo_hard(c, r, beta=0.7),
        "nca": nca(c, r, beta=0.7),
        "exo": exo(c - r, beta=0.7, smoothing=0.1),
        "apo_zero": apo_zero(c, r, beta=0.7),
        "apo_down": apo_down(c, r, beta=0.7),
        "discopop": discopop(c - r, beta=0.7, tau=0.05),
        "bco": bco(c, r, beta=0.7, shift=0.3),
        # aot: the reference margin is 0; aot_unpaired: each value is matched with its own pair
        "aot": sigmoid(c - r, beta=0.7, smoothing=0.1),
        "aot_unpaired": sigmoid(c - r, beta=0.7, smoothing=0.1),
    }
    assert torch.allclose(LOSSES[name](terms(c, r)), expected[name])


@pytest.mark.parametrize("name", LOSSES)
def test_smoothed_lists_the_losses_that_label_smoothing_changes(name):
    c, r = random(6, 1), random(6, 2)
    one, other = (LOSSES[name](terms(c, r, smoothing=smoothing)) for smoothing in (0.1, 0.2))
    assert torch.equal(one, other) == (name not in SMOOTHED)


@pytest.mark.parametrize("divergence", get_args(Divergence))
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_finite_for_large_log_ratios(name, divergence):
    extreme = [-500.0, -90.0, -40.5, 0.0, 500.0]
    for alpha in (0.1, 0.5, 0.9):
        chosen = torch.tensor([one for one in extreme for _ in extreme], requires_grad=True)
        rejected = torch.tensor(extreme * len(extreme), requires_grad=True)
        transformed = (f_prime(value, divergence, alpha) for value in (chosen, rejected))
        loss = LOSSES[name](terms(*transformed))
        assert torch.isfinite(loss).all()
        for gradient in torch.autograd.grad(loss.sum(), (chosen, rejected), allow_unused=True):
            assert gradient is not None
            assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "discopop"])
def test_every_loss_but_discopop_widens_the_initial_gap(name):
    # At log-ratios of 0: chosen does not fall, rejected does not rise, and the gap grows.
    chosen, rejected = tensor(0.0).requires_grad_(True), tensor(0.0).requires_grad_(True)
    up, down = torch.autograd.grad(LOSSES[name](terms(chosen, rejected, shift=0.0)).sum(), (chosen, rejected))
    assert float(up) <= 0 <= float(down)
    assert float(down - up) > 0
