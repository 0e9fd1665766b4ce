"""Does a confidence mean what it says? The expected calibration error of answers, with its interval."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from postrain.calibration import confidence_sums, expected_error
from postrain.evaluation.measures import Estimate


def calibration_error(confidences: Sequence[float], rights: Sequence[float]) -> Estimate:
    """Mean distance between the confidence in answers and the share of them that is right, over ten bins of confidence
    (Guo et al. 2017); the interval is the jackknife's. It is never below 0, so few answers make it look large."""
    sure_B, right_B = torch.tensor(confidences).double(), torch.tensor(rights).double()
    sums_K3 = confidence_sums(sure_B, right_B)
    alone = [confidence_sums(sure_B[at : at + 1], right_B[at : at + 1]) for at in range(len(sure_B))]
    return Estimate.jackknife(expected_error(sums_K3), [expected_error(sums_K3 - one_K3) for one_K3 in alone])
