"""calibration.py against hand-made bins and torchmetrics."""

from __future__ import annotations

from math import log

import pytest
import torch
from torchmetrics.functional.classification import binary_calibration_error

from postrain.methods.calibration import bin_sums, confidence_sums, expected_error


def test_worked_numbers() -> None:
    # margins ln 4, ln 4, ln 4, -ln 4: confidence 0.8 each, three of four right → |0.75 - 0.8| = 0.05
    assert expected_error(bin_sums(torch.tensor([log(4.0)] * 3 + [-log(4.0)]))) == pytest.approx(0.05)
    # one pair at confidence 0.6 and wrong, three at 0.9 and right → (0.6 + 3 · 0.1) / 4 = 0.225
    margins_B = torch.tensor([-log(1.5), log(9.0), log(9.0), log(9.0)])
    assert expected_error(bin_sums(margins_B)) == pytest.approx(0.225)


def test_no_preference_is_half_right_and_so_calibrated() -> None:
    assert expected_error(bin_sums(torch.zeros(5))) == 0.0
    assert expected_error(bin_sums(torch.zeros(0))) == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_equals_torchmetrics_and_adds_up_over_batches(seed: int) -> None:
    margins_B = 2 * torch.randn(203, generator=torch.Generator().manual_seed(seed)) + 0.5
    whole = bin_sums(margins_B)
    parts = sum(bin_sums(part_B) for part_B in margins_B.split([7, 96, 100]))
    torch.testing.assert_close(whole, parts)
    # 20 bins on [0, 1] are our 10 on [½, 1]: a confidence is never below a half
    theirs = binary_calibration_error(torch.sigmoid(margins_B.abs()), (margins_B > 0).int(), n_bins=20)
    assert expected_error(whole) == pytest.approx(float(theirs), abs=1e-6)


def test_confidence_of_any_answers() -> None:
    # three at 0.5, one of them right, and one at 1, right: (|1 − 1.5| + |1 − 1|) / 4 = 0.125
    confidence_B, right_B = torch.tensor([0.5, 0.5, 0.5, 1.0]), torch.tensor([1.0, 0.0, 0.0, 1.0])
    assert expected_error(confidence_sums(confidence_B, right_B)) == pytest.approx(0.125)
    drawn_B = torch.rand(200, generator=torch.Generator().manual_seed(0))
    truth_B = (torch.rand(200, generator=torch.Generator().manual_seed(1)) < drawn_B).int()
    theirs = binary_calibration_error(drawn_B, truth_B, n_bins=10)
    assert expected_error(confidence_sums(drawn_B, truth_B)) == pytest.approx(float(theirs), abs=1e-6)
