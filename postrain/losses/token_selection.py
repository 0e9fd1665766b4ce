"""Selections of tokens by entropy, or by the covariance of log-probability and advantage.

Axes: N tokens of a rollout, over all ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from postrain.precision import widen
from postrain.types import PositiveFraction


def covariance(logps: Tensor, advantages: Tensor) -> Tensor:
    """(log π − mean log π)·(A − mean A) of each token, [N] (Cui et al. 2025, "The entropy mechanism of reinforcement
    learning for reasoning language models", arXiv 2505.22617). Tokens with a large value lower the entropy
    most."""
    logps_N, advantages_N = widen(logps), widen(advantages)
    return (logps_N - logps_N.mean()) * (advantages_N - advantages_N.mean())


def clip_cov_tokens(
    logps: Tensor,
    advantages: Tensor,
    uniform: Tensor,
    *,
    clip_cov_ratio: PositiveFraction = 2e-4,
    clip_cov_lb: float = 1.0,
    clip_cov_ub: float = 5.0,
) -> Tensor:
    """clip_cov_ratio · N random tokens (at least one) whose covariance is between the bounds, [N] bool (Cui et al.
    2025, Clip-Cov). `uniform` [N] are random numbers from [0, 1)."""
    covariance_N = covariance(logps, advantages)
    within_N = (covariance_N > clip_cov_lb) & (covariance_N < clip_cov_ub)
    return _first(uniform.masked_fill(~within_N, torch.inf), max(1, int(clip_cov_ratio * len(logps)))) & within_N


def kl_cov_tokens(
    logps: Tensor, advantages: Tensor, uniform: Tensor, *, kl_cov_ratio: PositiveFraction = 2e-4
) -> Tensor:
    """The kl_cov_ratio · N tokens (at least one) with the largest covariance, [N] bool (Cui et al. 2025, KL-Cov)."""
    return _first(-covariance(logps, advantages), max(1, int(kl_cov_ratio * len(logps))))


def top_entropy_tokens(entropy: Tensor, quantile: float) -> Tensor:
    """The quantile · N tokens (at least one) with the largest entropy, [N] bool (Wang et al. 2025, "Beyond the 80/20
    rule", arXiv 2506.01939)."""
    return _first(-entropy, max(1, round(quantile * len(entropy))))


def _first(values_N: Tensor, count: int) -> Tensor:
    """True at the `count` smallest values; earlier tokens win ties."""
    found_N = torch.zeros_like(values_N, dtype=torch.bool)
    found_N[values_N.argsort(stable=True)[:count]] = True
    return found_N
