"""Is what is said with confidence c right in a share c of cases? Sums that add up over batches and ranks; for a reward
model: does its margin mean what Bradley-Terry says it means?

Axes: B cases (pairs, answers), K confidence bins.
"""

from __future__ import annotations

import torch
from torch import Tensor

BINS = 10


def bin_sums(margin_B: Tensor, bins: int = BINS) -> Tensor:
    """Pairs, confidence and correct answers in each confidence bin, float64 [K, 3].

    `margin_B` is reward of the chosen minus reward of the rejected. The model prefers the larger reward with
    confidence sigmoid(|margin|), between 1/2 and 1, and is right where the margin is positive (half right at 0).
    """
    margin_B = margin_B.detach().double()
    right_B = (margin_B > 0).double() + 0.5 * (margin_B == 0)
    return confidence_sums(torch.sigmoid(margin_B.abs()), right_B, lowest=0.5, bins=bins)


def confidence_sums(confidence_B: Tensor, right_B: Tensor, *, lowest: float = 0.0, bins: int = BINS) -> Tensor:
    """Cases, confidence and right ones in each confidence bin, float64 [K, 3].

    `confidence_B` is between `lowest` and 1, which the bins share evenly; `right_B` is 1 or 0, or something between.
    """
    confidence_B, right_B = confidence_B.detach().double(), right_B.double()
    index_B = ((confidence_B - lowest) / (1 - lowest) * bins).long().clamp(max=bins - 1)
    sums_K3 = torch.zeros(bins, 3, dtype=torch.float64, device=confidence_B.device)
    return sums_K3.index_add_(0, index_B, torch.stack([torch.ones_like(confidence_B), confidence_B, right_B], dim=1))


def expected_error(sums_K3: Tensor) -> float:
    """Expected calibration error (Guo et al. 2017): mean over cases of |share right - confidence| of their bin."""
    cases_K, confidence_K, right_K = sums_K3.unbind(1)
    return float((right_K - confidence_K).abs().sum() / cases_K.sum().clamp(min=1))
