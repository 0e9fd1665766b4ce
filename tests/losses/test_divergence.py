"""KL estimators and the adaptive KL coefficient: published and worked numbers."""

import math

import pytest
import torch

from postrain.losses.divergence import (
    adapt_kl_coef,
    exact_kl,
    forward_kl,
    generalized_jsd,
    kl,
    skewed_forward_kl,
    skewed_reverse_kl,
)


def test_kl_estimators_have_the_published_bias_and_spread():
    """Schulman's table for q = N(0.1, 1), p = N(0, 1), true KL 0.005, divided by the true KL."""
    x = torch.randn(4_000_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    logq, logp = -0.5 * (x - 0.1) ** 2, -0.5 * x**2
    true = 0.5 * 0.1**2
    found = {name: kl(logq, logp, name) for name in ("k1", "k2", "k3")}
    assert [float(found[k].mean() / true - 1) for k in found] == pytest.approx([0, 0.002, 0], abs=0.03)
    assert [float(found[k].std() / true) for k in found] == pytest.approx([20, 1.42, 1.42], rel=0.01)
    assert bool((found["k3"] >= 0).all())


def test_adaptive_kl_coefficient_clips_the_error_at_a_fifth():
    # KL twice the target: clip(1, ±0.2) = 0.2; 0.1 · (1 + 0.2 · 100/1000) = 0.102
    assert adapt_kl_coef(0.1, 2.0, target=1.0, samples=100, horizon=1000) == pytest.approx(0.102)
    # KL 5 % under: −0.05 is inside the clip; 0.1 · (1 − 0.05 · 0.1) = 0.0995
    assert adapt_kl_coef(0.1, 0.95, target=1.0, samples=100, horizon=1000) == pytest.approx(0.0995)


# Two tokens: teacher (3/4, 1/4), student (1/2, 1/2).
TEACHER, STUDENT = torch.tensor([0.75, 0.25]).log(), torch.tensor([0.5, 0.5]).log()


def test_generalized_jsd_of_worked_distributions():
    # M = (5/8, 3/8): ½ (¾ ln 6/5 + ¼ ln 2/3) + ½ (½ ln 4/5 + ½ ln 4/3) = 0.0338
    half = (0.75 * math.log(6 / 5) + 0.25 * math.log(2 / 3)) / 2 + (math.log(4 / 5) + math.log(4 / 3)) / 4
    assert float(generalized_jsd(STUDENT, TEACHER, beta=0.5)) == pytest.approx(half) == pytest.approx(0.03382, abs=1e-5)
    # M = ¼ T + ¾ S = (9/16, 7/16): ¼ (¾ ln 4/3 + ¼ ln 4/7) + ¾ (½ ln 8/9 + ½ ln 8/7) = 0.0249
    quarter = (0.75 * math.log(4 / 3) + 0.25 * math.log(4 / 7)) / 4 + 0.375 * (math.log(8 / 9) + math.log(8 / 7))
    assert float(generalized_jsd(STUDENT, TEACHER, beta=0.25)) == pytest.approx(quarter)
    # ¾ ln 3/2 + ¼ ln ½ = 0.1308 and ½ ln 2/3 + ½ ln 2 = 0.1438
    forward, reverse = 0.75 * math.log(1.5) - 0.25 * math.log(2), (math.log(2 / 3) + math.log(2)) / 2
    assert float(forward_kl(STUDENT, TEACHER)) == pytest.approx(forward) == pytest.approx(0.13081, abs=1e-5)
    assert float(exact_kl(STUDENT, TEACHER)) == pytest.approx(reverse) == pytest.approx(0.14384, abs=1e-5)
    assert float(generalized_jsd(STUDENT, TEACHER, beta=0)) == pytest.approx(forward)
    assert float(generalized_jsd(STUDENT, TEACHER, beta=1)) == pytest.approx(reverse)
    with pytest.raises(ValueError, match=r"beta=1\.5: expected a number from 0 to 1"):
        generalized_jsd(STUDENT, TEACHER, beta=1.5)


def test_divergences_equal_the_values_of_trl_on_fixed_logits():
    """Values of `GKDTrainer.generalized_jsd_loss` of TRL 1.16 (reduction="sum", float64) on these logits.

    Token 1: T = (1/2, 1/4, 1/4), S = (1/4, 1/2, 1/4). Token 2: T = (1/8, 3/8, 1/2), S = (1/4, 1/4, 1/2).
    β = 0: ½ ln 2 + ¼ ln ½ and ⅛ ln ½ + ⅜ ln 3/2, 0.17329 + 0.06541. β = 1: ¼ ln ½ + ½ ln 2 and ¼ ln 2 + ¼ ln 2/3,
    0.17329 + 0.07192. β = ½, M = (3/8, 3/8, 1/4): token 1 is ½ ln 4/3 + ¼ ln 2/3 = 0.04247 from either side; M =
    (3/16, 5/16, 1/2): token 2 is ½ (⅛ ln 2/3 + ⅜ ln 6/5) + ½ (¼ ln 4/3 + ¼ ln 4/5) = 0.01691.
    """
    teacher = torch.tensor([[4.0, 2, 2], [1, 3, 4]]).double().log()
    student = torch.tensor([[2.0, 4, 2], [2, 2, 4]]).double().log()
    values = {0: 0.2386928131105548, 0.1: 0.02139803602152003, 0.5: 0.05938579698315186, 1: 0.2452073132529315}
    for beta, expected in values.items():
        found = generalized_jsd(student.log_softmax(-1), teacher.log_softmax(-1), beta=beta)
        assert float(found.sum()) == pytest.approx(expected, rel=1e-12)
    halved = generalized_jsd((student / 2).log_softmax(-1), (teacher / 2).log_softmax(-1), beta=0.5)
    assert float(halved.sum()) == pytest.approx(0.015827372732728426, rel=1e-12)


def test_skewed_kls_of_worked_distributions():
    # α = ¼, ¼ T + ¾ S = (9/16, 7/16): ¾ ln 4/3 + ¼ ln 4/7 = 0.0759; ¼ S + ¾ T = (11/16, 5/16):
    # ½ ln 8/11 + ½ ln 8/5 = 0.0758
    forward = 0.75 * math.log(4 / 3) + 0.25 * math.log(4 / 7)
    reverse = (math.log(8 / 11) + math.log(8 / 5)) / 2
    assert (
        float(skewed_forward_kl(STUDENT, TEACHER, alpha=0.25))
        == pytest.approx(forward)
        == pytest.approx(0.07586, abs=1e-5)
    )
    assert (
        float(skewed_reverse_kl(STUDENT, TEACHER, alpha=0.25))
        == pytest.approx(reverse)
        == pytest.approx(0.07577, abs=1e-5)
    )
    assert float(skewed_forward_kl(STUDENT, TEACHER, alpha=0)) == float(forward_kl(STUDENT, TEACHER))
    assert float(skewed_reverse_kl(STUDENT, TEACHER, alpha=0)) == float(exact_kl(STUDENT, TEACHER))
    # Disjoint distributions: KL(T ‖ α T) = −ln α
    one, other = torch.tensor([[0.0, -200.0], [-200.0, 0.0]])
    assert float(skewed_forward_kl(one, other)) == float(skewed_reverse_kl(one, other)) == pytest.approx(-math.log(0.1))
    with pytest.raises(ValueError, match=r"alpha=1: expected a number from 0 to below 1"):
        skewed_forward_kl(STUDENT, TEACHER, alpha=1)


def test_scaled_generalized_jsd_approaches_both_kls_at_the_ends():
    student, teacher = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)).double().log_softmax(-1)
    near = 1e-6
    forward, reverse = forward_kl(student, teacher), exact_kl(student, teacher)
    assert torch.allclose(generalized_jsd(student, teacher, beta=near) / near, forward, rtol=1e-4)
    assert torch.allclose(generalized_jsd(student, teacher, beta=1 - near) / near, reverse, rtol=1e-4)


def test_gradient_of_the_reverse_kl_equals_the_enumerated_policy_gradient():
    """∇KL(π ‖ T) = Σ_y π(y) (log π(y) − log T(y)) ∇log π(y) over all one-token completions y."""
    logits = torch.randn(5, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    teacher = torch.randn(5, generator=torch.Generator().manual_seed(2)).double().log_softmax(-1)
    (found,) = torch.autograd.grad(exact_kl(logits.log_softmax(-1), teacher), logits)
    expected = torch.zeros(5).double()
    for token in range(5):
        logp = logits.log_softmax(-1)[token]
        expected += float((logp.exp() * (logp - teacher[token])).detach()) * torch.autograd.grad(logp, logits)[0]
    assert torch.allclose(found, expected)
