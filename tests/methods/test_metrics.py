"""Metrics that several methods log: worked numbers, and the calibration error against torchmetrics."""

from __future__ import annotations

import math
from math import log

import pytest
import torch
from torchmetrics.functional.classification import binary_calibration_error

from postrain.losses.policy_losses import clipped
from postrain.methods.metrics import (
    combine,
    confidence_bins,
    expected_calibration_error,
    explained_variance,
    margin_bins,
    positive,
    step_metrics,
)
from postrain.types import Max, Mean


def test_step_metrics_of_two_tokens():
    mask = torch.tensor([[True, True, False]])
    old = torch.zeros(1, 3)
    new = torch.tensor([[math.log(1.5), math.log(0.9), 5.0]])
    positive, negative = (clipped(new, old, torch.full((1, 3), sign), mask) for sign in (1.0, -1.0))
    found = step_metrics(new - old, positive, mask)
    # ratios 1.5 and 0.9: mean 1.2; 1.5 is clipped for a positive advantage and not for a negative one
    assert step_metrics(new - old, negative, mask)["clip_fraction"].value() == 0
    assert found["ratio/mean"].value() == pytest.approx(1.2)
    assert found["ratio/max"].value() == pytest.approx(1.5)
    assert found["clip_fraction"].value() == pytest.approx(0.5)
    # k3 of the old policy: (0.5 − ln 1.5 + (−0.1) − ln 0.9) / 2
    assert found["kl/old_policy"].value() == pytest.approx((0.5 - math.log(1.5) - 0.1 - math.log(0.9)) / 2)


def test_a_mean_without_observations_has_no_value():
    found = combine({"reward/total": Mean(0.0, 0.0), "reward/unscorable": Mean(2.0, 2.0), "ratio/max": Max(1.5)})
    assert found == {"ratio/max": 1.5, "reward/unscorable": 1.0}


def test_explained_variance_is_1_for_errors_without_variance():
    # returns 1 and 3: variance 1; values of 2 leave errors −1 and 1; values of 1 and 3, or 5 and 7, leave equal errors
    assert float(explained_variance(torch.tensor(1.0), torch.tensor(1.0))) == 0
    assert float(explained_variance(torch.tensor(1.0), torch.tensor(0.0))) == 1


def test_equal_rewards_count_half():
    # one above, one below, one equal up to rounding: 1 + 0 + ½
    assert positive(torch.tensor([0.3, -0.2, 2e-8])).tolist() == [1.0, 0.0, 0.5]


def test_calibration_error_of_worked_margins() -> None:
    # margins ln 4, ln 4, ln 4, -ln 4: confidence 0.8 each, three of four correct → |0.75 - 0.8| = 0.05
    assert expected_calibration_error(margin_bins(torch.tensor([log(4.0)] * 3 + [-log(4.0)]))) == pytest.approx(0.05)
    # one pair at confidence 0.6 and wrong, three at 0.9 and correct → (0.6 + 3 · 0.1) / 4 = 0.225
    margins_B = torch.tensor([-log(1.5), log(9.0), log(9.0), log(9.0)])
    assert expected_calibration_error(margin_bins(margins_B)) == pytest.approx(0.225)


def test_calibration_error_of_zero_margins_is_0() -> None:
    assert expected_calibration_error(margin_bins(torch.zeros(5))) == 0.0
    assert expected_calibration_error(margin_bins(torch.zeros(0))) == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_calibration_error_equals_torchmetrics_and_bins_add_up_over_batches(seed: int) -> None:
    margins_B = 2 * torch.randn(203, generator=torch.Generator().manual_seed(seed)) + 0.5
    whole = margin_bins(margins_B)
    parts = sum(margin_bins(part_B) for part_B in margins_B.split([7, 96, 100]))
    torch.testing.assert_close(whole, parts)
    # 20 bins on [0, 1] equal 10 bins on [½, 1]: the confidence of a pair is at least ½
    expected = binary_calibration_error(torch.sigmoid(margins_B.abs()), (margins_B > 0).int(), n_bins=20)
    assert expected_calibration_error(whole) == pytest.approx(float(expected), abs=1e-6)


def test_calibration_error_of_answers_equals_torchmetrics() -> None:
    # three at confidence 0.5, one of them correct, and one at 1, correct: (|1 − 1.5| + |1 − 1|) / 4 = 0.125
    confidence_B, right_B = torch.tensor([0.5, 0.5, 0.5, 1.0]), torch.tensor([1.0, 0.0, 0.0, 1.0])
    assert expected_calibration_error(confidence_bins(confidence_B, right_B)) == pytest.approx(0.125)
    drawn_B = torch.rand(200, generator=torch.Generator().manual_seed(0))
    truth_B = (torch.rand(200, generator=torch.Generator().manual_seed(1)) < drawn_B).int()
    expected = binary_calibration_error(drawn_B, truth_B, n_bins=10)
    assert expected_calibration_error(confidence_bins(drawn_B, truth_B)) == pytest.approx(float(expected), abs=1e-6)
