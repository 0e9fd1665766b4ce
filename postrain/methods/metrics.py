"""Metrics of an update: sums added up by name over micro-batches, mini-batches and ranks, then plain floats; and the
metrics that several methods log.

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
from postrain.types import Max, Mean

Metrics = Mapping[str, Mean | Max]

# Rewards closer than this are ties: before the first update all implicit rewards of DPO are equal up to rounding.
TIE = 1e-4
BINS = 10


# Accumulation --------------------------------------------------------------------------------------------------------


def add_metrics(into: dict[str, Mean | Max], metrics: Metrics) -> None:
    """Adds metrics up by name; tensors are detached."""
    for name, value in metrics.items():
        into[name] = added(into[name], value) if name in into else value


def added(one: Mean | Max, other: Mean | Max) -> Mean | Max:
    """The sum of two metrics of one name, which are of one kind."""
    if isinstance(one, Mean):
        assert isinstance(other, Mean)
        return one + other
    assert isinstance(other, Max)
    return one + other


def combine(metrics: Metrics) -> dict[str, float]:
    """The metrics of an update over all ranks, as plain floats in a fixed order."""
    total: dict[str, Mean | Max] = {}
    for part in collectives.gather({name: plain(value) for name, value in metrics.items()}):
        add_metrics(total, part)
    return {name: total[name].value() for name in sorted(total)}


def plain(value: Mean | Max) -> Mean | Max:
    """The same metric in plain floats, free of device and graph."""
    return Max(float(value.peak)) if isinstance(value, Max) else Mean(float(value.total), float(value.count))


# What several methods log --------------------------------------------------------------------------------------------


def count_positive(gap_B: Tensor) -> Tensor:
    """Number of positive gaps, a scalar; ties count half."""
    return ((gap_B > TIE) + 0.5 * (gap_B.abs() <= TIE)).sum()


def explained_variance(returns: Tensor, errors: Tensor) -> Tensor:
    """1 − Var(returns − values) / Var(returns) from the two variances: 1 is a perfect critic, 0 a constant one."""
    return 1 - errors / returns.clamp(min=1e-8)


def sampled_kl_metrics(logps_BT: Tensor, ref_logps_BT: Tensor, mask_BT: Tensor) -> dict[str, Mean | Max]:
    """Every sampled estimate of KL(policy ‖ reference), per token, and the largest log-ratio."""
    estimators: tuple[SampledKL, ...] = ("k1", "k2", "k3")
    means: dict[str, Mean | Max] = {
        f"kl/{name}": Mean((kl(logps_BT, ref_logps_BT, name) * mask_BT).sum(), mask_BT.sum()) for name in estimators
    }
    return means | {"kl/log_ratio_max": Max(((logps_BT - ref_logps_BT) * mask_BT).abs().max())}


def kl_metrics(found: ReferenceScores) -> dict[str, Mean | Max]:
    """Every estimate of KL(policy ‖ reference), per token, and the largest log-ratio (0 before the first update)."""
    exact = {"kl/exact": Mean(found.kl_BT.detach().sum(), found.mask_BT.sum())}
    return sampled_kl_metrics(found.logps_BT.detach(), found.ref_logps_BT, found.mask_BT) | exact


def step_metrics(log_ratio_BT: Tensor, terms: PolicyTerms, mask_BT: Tensor) -> dict[str, Mean | Max]:
    """How far one optimizer step's policy is from the one that sampled, and the share of tokens that the clip changes.

    `log_ratio_BT` is the tokens' own, whatever ratio the terms clip.
    """
    log_ratio_BT, ratio, tokens = log_ratio_BT.detach() * mask_BT, terms.ratio.detach(), mask_BT.sum()
    return {
        "ratio/mean": Mean((ratio * mask_BT).sum(), tokens),
        "ratio/max": Max((ratio * mask_BT).max()),
        "clip_fraction": Mean((terms.clipped_BT & mask_BT).sum(), tokens),
        "kl/old_policy": Mean((log_ratio_BT.exp() - 1 - log_ratio_BT).sum(), tokens),
    }


# Calibration: are predictions with confidence c right in a share c of cases? -----------------------------------------


def margin_bins(margin_B: Tensor, bins: int = BINS) -> Tensor:
    """Pairs, confidence and correct answers in each confidence bin, float64 [K, 3], of a reward model's margins.

    The model prefers the larger reward with confidence sigmoid(|margin|), between 1/2 and 1, as Bradley-Terry has it,
    and is right where the margin (chosen minus rejected) is positive, half right at 0.
    """
    margin_B = margin_B.detach().double()
    right_B = (margin_B > 0).double() + 0.5 * (margin_B == 0)
    return confidence_bins(torch.sigmoid(margin_B.abs()), right_B, lowest=0.5, bins=bins)


def confidence_bins(confidence_B: Tensor, right_B: Tensor, *, lowest: float = 0.0, bins: int = BINS) -> Tensor:
    """Cases, confidence and right ones in each confidence bin, float64 [K, 3]; sums, so that batches and ranks add up.

    `confidence_B` is between `lowest` and 1, which the bins share evenly; `right_B` is 1 or 0, or something between.
    """
    confidence_B, right_B = confidence_B.detach().double(), right_B.double()
    index_B = ((confidence_B - lowest) / (1 - lowest) * bins).long().clamp(max=bins - 1)
    sums_K3 = torch.zeros(bins, 3, dtype=torch.float64, device=confidence_B.device)
    return sums_K3.index_add_(0, index_B, torch.stack([torch.ones_like(confidence_B), confidence_B, right_B], dim=1))


def expected_calibration_error(sums_K3: Tensor) -> float:
    """Expected calibration error (Guo et al. 2017): mean over cases of |share right − confidence| of their bin."""
    cases_K, confidence_K, right_K = sums_K3.unbind(1)
    return float((right_K - confidence_K).abs().sum() / cases_K.sum().clamp(min=1))
