"""Scale, bias and signal-to-noise ratio of gradients against worked numbers."""

from __future__ import annotations

import math

import pytest
import torch

from postrain.evaluation.gradient_noise import between_updates, gradient_quality

UNBIASED = torch.tensor([[2.0, 0.0, 0.0], [2.0, 1.0, 0.0], [2.0, -1.0, 0.0]])
"""Products of different updates: 4, 4 and 4 − 1 = 3, on average 11/3. Squared lengths: 4, 5 and 5, on average 14/3."""


def test_products_of_an_update_with_itself_do_not_count():
    assert between_updates(UNBIASED @ UNBIASED.T) == pytest.approx(11 / 3)


def test_a_multiple_of_the_unbiased_gradient_has_a_scale_and_no_bias():
    found = gradient_quality(2 * UNBIASED, UNBIASED)
    # SNR: 4 · 11/3 / (4 · 14/3 − 4 · 11/3) = 11/3, as without the factor.
    assert (found.scale, found.bias.value, found.cosine.value, found.snr.value) == pytest.approx((2, 0, 1, 11 / 3))
    assert found.bias.high == pytest.approx(0, abs=1e-3)
    assert found.snr.n == 3


def test_a_constant_error_is_a_bias():
    found = gradient_quality(UNBIASED + torch.tensor([0.0, 0.0, 0.5]), UNBIASED)
    # |error|² / |E r|² = 0.25 / (11/3) = 3/44
    assert found.scale == pytest.approx(1)
    assert found.bias.value == pytest.approx(math.sqrt(3 / 44))
    assert found.cosine.value == pytest.approx(1 / math.sqrt(1 + 3 / 44))


def test_noise_of_an_estimator_lowers_its_snr_and_is_no_bias():
    # Orthogonal noise in every update: its products with other updates are 0.
    noise = torch.cat([torch.zeros(3, 3), torch.eye(3)], 1)
    unbiased = torch.cat([UNBIASED, torch.zeros(3, 3)], 1)
    found = gradient_quality(unbiased + noise, unbiased)
    assert found.bias.value == pytest.approx(0, abs=1e-6)
    # (11/3) / (14/3 + 1 − 11/3)
    assert found.snr.value == pytest.approx(11 / 6)


def test_a_gradient_of_zero_has_no_signal():
    # Constant rewards: no gradient and no noise, 0 / 0.
    found = gradient_quality(torch.zeros(3, 2), torch.zeros(3, 2))
    assert (found.snr.value, found.snr.low, found.snr.high) == (0, 0, 0)
    # Without noise the signal of a gradient is infinite.
    assert gradient_quality(torch.ones(3, 2), torch.ones(3, 2)).snr.value == math.inf


def test_fewer_than_three_updates_are_refused():
    with pytest.raises(ValueError, match="at least three updates"):
        gradient_quality(UNBIASED[:2], UNBIASED[:2])


def test_bias_is_unknown_without_a_reference_gradient_beyond_the_noise():
    # Orthogonal gradients: products of different updates are 0.
    found = gradient_quality(torch.eye(3), torch.eye(3))
    assert (found.bias.value, found.bias.low, found.bias.high) == (math.inf, 0, math.inf)
    assert (found.cosine.low, found.cosine.high, found.snr.value) == (0, 1, 0)
