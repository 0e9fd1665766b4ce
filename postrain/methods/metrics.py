"""Accumulation of metrics over micro-batches, mini-batches and ranks, and metrics that several methods log.

Axes: B items, T tokens, K confidence bins.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from postrain.hardware import collectives
from postrain.losses.divergence import SampledKL, kl
from postrain.losses.policy_gradient import PolicyTerms
from postrain.models.scoring import ReferenceScores
from postrain.precision import widen
from postrain.types import Max, Mean

Metrics = Mapping[str, Mean | Max]

# Rewards closer than this are ties: before the first update all implicit rewards of DPO are equal up to rounding.
TIE = 1e-4
BINS = 10


# Accumulation ---------------------------------------------------------------------------------------------------------


def add_metrics(into: dict[str, Mean | Max], metrics: Metrics) -> None:
    """Accumulates `metrics` in `into` by name. Tensors must be detached."""
    for name, value in metrics.items():
        into[name] = add(into[name], value) if name in into else value


def add(one: Mean | Max, other: Mean | Max) -> Mean | Max:
    """The combination of two metrics of the same class."""
    if isinstance(one, Mean):
        assert isinstance(other, Mean)
        return one + other
    assert isinstance(other, Max)
    return one + other


def combine(metrics: Metrics) -> dict[str, float]:
    """Metrics combined over all ranks, as floats sorted by name; without means that no rank has an observation of."""
    total: dict[str, Mean | Max] = {}
    for part in collectives.gather({name: to_floats(value) for name, value in metrics.items()}):
        add_metrics(total, part)
    return {name: total[name].value() for name in sorted(total) if total[name].is_known()}


def to_floats(value: Mean | Max) -> Mean | Max:
    """The same metric with floats instead of tensors."""
    return Max(float(value.peak)) if isinstance(value, Max) else Mean(float(value.total), float(value.count))


# Metrics of several methods -------------------------------------------------------------------------------------------


def positive(gap_B: Tensor) -> Tensor:
    """1 for a positive gap, 0 for a negative one, 0.5 for a tie, [B]."""
    return (gap_B > TIE) + 0.5 * (gap_B.abs() <= TIE)


def explained_variance(returns: Tensor, errors: Tensor) -> Tensor:
    """1 − Var(returns − values) / Var(returns): 1 is a perfect critic, 0 a constant one.

    `returns` and `errors` are the variances of the returns and of returns − values.
    """
    return 1 - errors / returns.clamp(min=1e-8)


def sampled_kl_metrics(logps_BT: Tensor, ref_logps_BT: Tensor, mask_BT: Tensor) -> dict[str, Mean | Max]:
    """The estimates k1, k2, k3 of KL(policy ‖ reference) [nats/token], and the largest log-ratio of a token [nats]."""
    estimators: tuple[SampledKL, ...] = ("k1", "k2", "k3")
    means: dict[str, Mean | Max] = {
        f"kl/{name}": Mean((kl(logps_BT, ref_logps_BT, name) * mask_BT).sum(), mask_BT.sum()) for name in estimators
    }
    return means | {"kl/log_ratio_max": Max(((logps_BT - ref_logps_BT) * mask_BT).abs().max())}


def kl_metrics(found: ReferenceScores) -> dict[str, Mean | Max]:
    """The sampled estimates and the exact KL(policy ‖ reference) [nats/token], and the largest log-ratio of a token
    [nats], which is 0 before the first update."""
    exact = {"kl/exact": Mean(found.kl_BT.detach().sum(), found.mask_BT.sum())}
    return sampled_kl_metrics(found.logps_BT.detach(), found.ref_logps_BT, found.mask_BT) | exact


def step_metrics(log_ratio_BT: Tensor, terms: PolicyTerms, mask_BT: Tensor) -> dict[str, Mean | Max]:
    """Importance ratios, clip fraction and KL to the old policy of one optimizer step.

    `log_ratio_BT` is log π/π_old of each token, also if `terms` has ratios of whole completions.
    """
    log_ratio_BT, ratio, tokens = log_ratio_BT.detach() * mask_BT, terms.ratio.detach(), mask_BT.sum()
    return {
        "ratio/mean": Mean((ratio * mask_BT).sum(), tokens),
        "ratio/max": Max((ratio * mask_BT).max()),
        "clip_fraction": Mean((terms.clipped_BT & mask_BT).sum(), tokens),
        "kl/old_policy": Mean((log_ratio_BT.exp() - 1 - log_ratio_BT).sum(), tokens),
    }


# Calibration: predictions with confidence c should be correct in a share c of cases -----------------------------------


def margin_bins(margin_B: Tensor, bins: int = BINS) -> Tensor:
    """Confidence bins of a reward model's margins (chosen minus rejected), as `confidence_bins` returns them.

    Bradley-Terry prefers the larger reward with confidence sigmoid(|margin|), between 1/2 and 1. The prediction is
    correct if the margin is positive, and counts half at 0.
    """
    margin_B = widen(margin_B.detach())
    correct_B = (margin_B > 0).to(margin_B.dtype) + 0.5 * (margin_B == 0)
    return confidence_bins(torch.sigmoid(margin_B.abs()), correct_B, lowest=0.5, bins=bins)


def confidence_bins(confidence_B: Tensor, correct_B: Tensor, *, lowest: float = 0.0, bins: int = BINS) -> Tensor:
    """Number of cases, sum of confidences and number of correct cases in each bin, [K, 3], in the device's widest type.

    The sums are additive over batches and ranks. Bins divide [`lowest`, 1] evenly. `correct_B` is between 0 (wrong) and
    1 (correct).
    """
    confidence_B, correct_B = widen(confidence_B.detach()), widen(correct_B)
    index_B = ((confidence_B - lowest) / (1 - lowest) * bins).long().clamp(max=bins - 1)
    sums_K3 = confidence_B.new_zeros(bins, 3)
    return sums_K3.index_add_(0, index_B, torch.stack([torch.ones_like(confidence_B), confidence_B, correct_B], dim=1))


def expected_calibration_error(sums_K3: Tensor) -> float:
    """Expected calibration error (Guo et al. 2017): mean over cases of |accuracy − confidence| of their bin."""
    cases_K, confidence_K, correct_K = sums_K3.unbind(1)
    return float((correct_K - confidence_K).abs().sum() / cases_K.sum().clamp(min=1))
