"""KL estimators and the adaptive KL coefficient: published and worked numbers."""

import pytest
import torch

from postrain.losses.divergence import adapt_kl_coef, kl


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
