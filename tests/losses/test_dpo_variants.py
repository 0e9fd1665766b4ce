"""Each loss of the DPO family: worked numbers, and properties checked on random numbers."""

from __future__ import annotations

from math import exp, log

import pytest
import torch
from torch import Tensor

from postrain.losses.dpo_variants import (
    aot,
    aot_unpaired,
    apo_down,
    apo_zero,
    bco,
    discopop,
    exo,
    hinge,
    ipo,
    match_by_rank,
    nca,
    robust,
    sigmoid,
    sigmoid_norm,
    sppo_hard,
    wpo_weights,
)

LN_3 = log(3)
"""σ(ln 3) = 3/4 and σ(−ln 3) = 1/4."""


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random(count: int, seed: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def slope(loss, *at: float) -> list[float]:
    """The derivatives of a loss with respect to its arguments."""
    inputs = [tensor(value).requires_grad_(True) for value in at]
    return [float(gradient) for gradient in torch.autograd.grad(loss(*inputs).sum(), inputs)]


def test_sigmoid_of_worked_gaps():
    # −ln σ(0) = ln 2; β Δ = 0.1 · 10 ln 3: −ln ¾; smoothed: −0.9 ln ¾ − 0.1 ln ¼
    assert sigmoid(tensor(0, 10 * LN_3), beta=0.1).tolist() == pytest.approx([log(2), -log(3 / 4)])
    smoothed = sigmoid(tensor(0, 10 * LN_3), beta=0.1, smoothing=0.1)
    assert smoothed.tolist() == pytest.approx([log(2), -0.9 * log(3 / 4) - 0.1 * log(1 / 4)])
    # d/dΔ at 0: −β (½ (1 − ε) − ½ ε) = −β (½ − ε)
    assert slope(lambda gap: sigmoid(gap, beta=0.2, smoothing=0.1), 0) == pytest.approx([-0.2 * 0.4])


def test_label_smoothing_has_a_finite_optimal_gap():
    # σ(βΔ) = 1 − ε = ¾ at βΔ = ln 3: there the slope is −β ((1 − ε) σ(−βΔ) − ε σ(βΔ)) = −β (¾·¼ − ¼·¾) = 0
    assert slope(lambda gap: sigmoid(gap, beta=0.5, smoothing=0.25), 2 * LN_3) == pytest.approx([0])


def test_robust_of_a_worked_gap():
    # [−¾ ln ¾ + ¼ ln ¼] / (1 − ½)
    expected = (-3 / 4 * log(3 / 4) + 1 / 4 * log(1 / 4)) / 0.5
    assert robust(tensor(LN_3), beta=1.0, smoothing=0.25).item() == pytest.approx(expected)


def test_robust_is_unbiased_under_flipped_labels():
    for seed, smoothing in enumerate((0.0, 0.1, 0.3, 0.49)):
        gap = random(20, seed)
        correct, flipped = (robust(sign * gap, beta=0.7, smoothing=smoothing) for sign in (1, -1))
        clean = sigmoid(gap, beta=0.7)
        assert torch.allclose((1 - smoothing) * correct + smoothing * flipped, clean)


def test_robust_without_label_smoothing_is_sigmoid():
    gap = random(20, 0)
    assert torch.equal(robust(gap, beta=0.7, smoothing=0.0), sigmoid(gap, beta=0.7))


def test_sigmoid_norm_is_sigmoid_of_log_ratios_per_token():
    # β (0.5 − 0.1) = 5 · 0.4 = 2
    assert sigmoid_norm(tensor(0.5), tensor(0.1), beta=5.0).item() == pytest.approx(log(1 + exp(-2)))


def test_wpo_weight_is_one_for_tokens_as_likely_as_sampled_ones():
    # Uniform over 4 tokens: log ¼ − log (4 · ¼²) = 0. Then ½ with Σ π² = ¾: ⅔. Mean of 0 and log ⅔ over 2 tokens: √⅔.
    logps, squares = torch.tensor([[log(1 / 4), log(1 / 2), 9.0]]), torch.tensor([[log(1 / 4), log(3 / 4), 0.0]])
    weights = wpo_weights(logps.requires_grad_(), squares, torch.tensor([[True, True, False]]))
    assert weights.tolist() == pytest.approx([(2 / 3) ** 0.5])
    assert not weights.requires_grad


def test_hinge_of_worked_gaps():
    # 1 − 0.5 · (−2) = 2; 1 − 0 = 1; 1 − 0.5 · 1 = ½; 1 − 0.5 · 4 < 0
    assert hinge(tensor(-2, 0, 1, 4), beta=0.5).tolist() == pytest.approx([2, 1, 0.5, 0])


def test_ipo_has_its_optimum_at_half_the_inverse_of_tau():
    # (0 − 1 / 0.2)² = 25; (3 − 1 − 5)² = 9
    assert ipo(tensor(0, 3), tensor(0, 1), beta=0.1).tolist() == pytest.approx([25, 9])
    # the optimum is a gap of 1 / (2 · 0.1) = 5, independent of the log-ratios
    assert ipo(tensor(2.0), tensor(-3.0), beta=0.1).item() == 0
    assert slope(lambda c, r: ipo(c, r, beta=0.1), 2, -3) == [0, 0]


def test_sppo_hard_of_worked_log_ratios():
    # (0.2 − 1)² + (0.3 + 1)² with 1 / (2β) = 1
    assert sppo_hard(tensor(0.2), tensor(0.3), beta=0.5).item() == pytest.approx(0.64 + 1.69)
    assert sppo_hard(tensor(1.0), tensor(-1.0), beta=0.5).item() == 0


def test_nca_of_worked_log_ratios():
    # −ln ½ − ½ ln ½ − ½ ln ½ = 2 ln 2; l_c = −l_r = ln 3: −ln ¾ − ½ ln ¼ − ½ ln ¾
    assert nca(tensor(0), tensor(0), beta=1.0).item() == pytest.approx(2 * log(2))
    expected = -1.5 * log(3 / 4) - 0.5 * log(1 / 4)
    assert nca(tensor(LN_3), tensor(-LN_3), beta=1.0).item() == pytest.approx(expected)
    # at 0 the chosen log-ratio rises: −½ + ½ · ½ = −¼; the rejected one falls: ½ · ½ = ¼
    assert slope(lambda c, r: nca(c, r, beta=1.0), 0, 0) == pytest.approx([-1 / 4, 1 / 4])


def test_exo_is_a_divergence():
    # ½ (ln ½ − ln ¾) + ½ (ln ½ − ln ¼)
    expected = 0.5 * (log(1 / 2) - log(3 / 4)) + 0.5 * (log(1 / 2) - log(1 / 4))
    assert exo(tensor(0), beta=1.0, smoothing=0.25).item() == pytest.approx(expected)
    assert float(exo(random(100, 0), beta=1.0, smoothing=0.25).min()) >= 0
    # σ(β Δ) = ¾ = 1 − ε at Δ = ln 3 / β
    assert exo(tensor(LN_3 / 0.5), beta=0.5, smoothing=0.25).item() == pytest.approx(0, abs=1e-12)
    assert slope(lambda gap: exo(gap, beta=0.5, smoothing=0.25), LN_3 / 0.5) == pytest.approx([0])


def test_apo_of_worked_log_ratios():
    # zero: 1 − ¾ + ¼; down: ¾ + 1 − σ(2 ln 3) = ¾ + 1 − 9/10
    assert apo_zero(tensor(LN_3), tensor(-LN_3), beta=1.0).item() == pytest.approx(1 / 2)
    assert apo_down(tensor(LN_3), tensor(-LN_3), beta=1.0).item() == pytest.approx(3 / 4 + 1 / 10)
    # σ′(0) = ¼. zero: chosen up, rejected down; down: at 0 chosen ¼ − ¼, rejected down
    assert slope(lambda c, r: apo_zero(c, r, beta=1.0), 0, 0) == pytest.approx([-1 / 4, 1 / 4])
    assert slope(lambda c, r: apo_down(c, r, beta=1.0), 0, 0) == pytest.approx([0, 1 / 4])
    # down, at a gap of 2 ln 3: chosen 3/16 − 9/100 > 0, so the chosen log-ratio falls too
    assert slope(lambda c, r: apo_down(c, r, beta=1.0), LN_3, -LN_3) == pytest.approx([0.1875 - 0.09, 0.09])


def test_discopop_of_worked_gaps():
    # m = ½: ½ ln 2 + ½ · 1
    assert discopop(tensor(0), beta=0.3, tau=0.05).item() == pytest.approx(0.5 * log(2) + 0.5)
    # β Δ = ln 3, τ = 1: m = ¾: ¼ · (−ln ¾) + ¾ · e^(−ln 3) = −¼ ln ¾ + ¼
    assert discopop(tensor(LN_3), beta=1.0, tau=1.0).item() == pytest.approx(-log(3 / 4) / 4 + 1 / 4)


def test_discopop_has_the_stationary_points_of_its_paper():
    # Lu et al. 2024: with β = τ = 0.05 the loss is flat at a gap of −2.3714 and at one of 1.44012
    for gap in (-2.3714, 1.44012):
        assert slope(lambda at: discopop(at, beta=0.05, tau=0.05), gap) == pytest.approx([0], abs=1e-6)
    # in between it rises
    assert slope(lambda at: discopop(at, beta=0.05, tau=0.05), 0)[0] > 0


def test_bco_classifies_around_its_shift():
    # both at the shift: 2 ln 2; ln 3 above and below it: −2 ln ¾
    assert bco(tensor(5), tensor(5), beta=0.1, shift=0.5).item() == pytest.approx(2 * log(2))
    found = bco(tensor(2 + LN_3), tensor(2 - LN_3), beta=1.0, shift=2.0)
    assert found.item() == pytest.approx(-2 * log(3 / 4))


def test_match_by_rank_pairs_values_of_equal_rank():
    # 5 and 30 are the largest, −1 and 10 the smallest, 2 and 20 in between
    assert match_by_rank(tensor(5, -1, 2), tensor(20, 30, 10)).tolist() == [30, 10, 20]
    for seed in range(20):
        values, others = random(seed + 1, seed), random(seed + 1, 100 + seed)
        order = values.argsort()
        assert torch.equal(match_by_rank(values, others)[order], others.sort().values)


def random_micro_batches(count: int, seed: int) -> list[Tensor]:
    """The integers below `count` in random order, split into micro-batches of a random size."""
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(count, generator=draw)
    size = int(torch.randint(1, count + 1, (1,), generator=draw))
    return list(order.split(size))


@pytest.mark.parametrize("seed", range(5))
def test_aot_is_independent_of_micro_batches(seed):
    margin, ref_margin = random(7 + seed, seed).requires_grad_(True), random(7 + seed, 50 + seed)
    whole = sigmoid(margin.sort().values - ref_margin.sort().values, beta=0.3, smoothing=0.1).sum()
    (expected,) = torch.autograd.grad(whole, margin)
    partner = match_by_rank(margin.detach(), ref_margin)
    parts = [
        aot(margin[cut], partner[cut], beta=0.3, smoothing=0.1).sum() for cut in random_micro_batches(len(margin), seed)
    ]
    total = torch.stack(parts).sum()
    assert total.item() == pytest.approx(whole.item())
    assert torch.allclose(torch.autograd.grad(total, margin)[0], expected)


@pytest.mark.parametrize("seed", range(5))
def test_unpaired_aot_is_independent_of_micro_batches(seed):
    chosen, rejected = (random(7 + seed, offset + seed).requires_grad_(True) for offset in (0, 50))
    whole = sigmoid(chosen.sort().values - rejected.sort().values, beta=0.3, smoothing=0.1).sum()
    expected = torch.autograd.grad(whole, (chosen, rejected))
    of_chosen = match_by_rank(chosen.detach(), rejected.detach())
    of_rejected = match_by_rank(rejected.detach(), chosen.detach())
    parts = [
        aot_unpaired(
            chosen[cut],
            rejected[cut],
            chosen_of_rank_B=of_rejected[cut],
            rejected_of_rank_B=of_chosen[cut],
            beta=0.3,
            smoothing=0.1,
        ).sum()
        for cut in random_micro_batches(len(chosen), seed)
    ]
    total = torch.stack(parts).sum()
    assert total.item() == pytest.approx(whole.item())
    for one, other in zip(torch.autograd.grad(total, (chosen, rejected)), expected, strict=True):
        assert torch.allclose(one, other)
