"""Maths that two or more methods use, as pure functions of tensors; no models, no configuration.

Axes: B rows, T tokens (left-aligned, padded), mask_BT True at real tokens. Log-probabilities are natural.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from postrain.types import Max, Mean

KLEstimator = Literal["k1", "k2", "k3", "exact"]


def derive_seed(seed: int, purpose: str, *indices: int) -> int:
    """A 63-bit seed that depends on every argument and on nothing else, so that a sample never depends on its
    neighbours in the batch, on the number of ranks or on how far an earlier generator has been drawn from."""
    digest = hashlib.blake2b(repr((seed, purpose, indices)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, purpose: str, *indices: int) -> torch.Generator:
    """A CPU generator of its own for (seed, purpose, indices)."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, *indices))


def full(values: Tensor) -> Tensor:
    """The values in float32 at least: sums over a vocabulary do not fit bfloat16."""
    return values if values.dtype == torch.float64 else values.float()


class _TokenLogps(torch.autograd.Function):
    """Autograd's own backward pass of gather and logsumexp goes over [N, V] six times; this one three times."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        log_norm_N = logits_NV.logsumexp(-1)
        ctx.save_for_backward(logits_NV, log_norm_N, targets_N)
        return logits_NV.gather(-1, targets_N[:, None]).squeeze(-1) - log_norm_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logits_NV, log_norm_N, targets_N = ctx.saved_tensors
        (gradient_N,) = gradients
        found_NV = (logits_NV - log_norm_N[:, None]).exp_().mul_(-gradient_N[:, None])
        return found_NV.scatter_add_(1, targets_N[:, None], gradient_N[:, None]), None


def token_logps(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """log softmax of each row at its target, [N]."""
    found = _TokenLogps.apply(logits_NV, targets_N)
    assert isinstance(found, Tensor)
    return found


def whiten(values_BT: Tensor, mask_BT: Tensor, *, mean: Tensor, variance: Tensor, shift_mean: bool = True) -> Tensor:
    """(values − mean) / sqrt(variance + 1e-8), with the mean added back unless `shift_mean`; 0 outside the mask.

    The moments are float64 scalars of the global batch (`parallel.moments`): in float32 the mean of values around 1000
    is already off by a part of their spread.
    """
    whitened_BT = (values_BT.double() - mean) * torch.rsqrt(variance + 1e-8)
    return ((whitened_BT if shift_mean else whitened_BT + mean) * mask_BT).to(values_BT)


@dataclass(frozen=True)
class RunningMean:
    """An exponential moving average that starts with nothing, not with 0: total / weight corrects the bias of the first
    steps (Kingma and Ba 2015, Adam, section 3)."""

    total: float = 0.0
    weight: float = 0.0
    """1 − momentum^n after n values."""

    @property
    def value(self) -> float:
        """The mean; 0 before the first value."""
        return self.total / self.weight if self.weight else 0.0

    def after(self, value: float, momentum: float) -> RunningMean:
        """With one more value."""
        share = 1 - momentum
        return RunningMean(momentum * self.total + share * value, momentum * self.weight + share)


def kl_estimate(logps_BT: Tensor, ref_logps_BT: Tensor, estimator: Literal["k1", "k2", "k3"]) -> Tensor:
    """Per-token estimate of KL(policy ‖ reference) from tokens the policy drew (Schulman 2020, "Approximating KL").

    With log r = ref − policy: k1 = −log r (unbiased), k2 = ½ (log r)² (low variance), k3 = r − 1 − log r (both, ≥ 0).
    """
    log_ratio_BT = ref_logps_BT - logps_BT
    if estimator == "k1":
        return -log_ratio_BT
    if estimator == "k2":
        return 0.5 * log_ratio_BT**2
    return log_ratio_BT.exp() - 1 - log_ratio_BT


def gae(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, *, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimates over completion tokens, right to left (Schulman et al. 2016, eq. 16).

    `values_BT[b, t]` is the value before token t is drawn; the value after the last real token is 0, since a
    completion is a whole episode. 0 outside the mask.
    """
    advantages_BT = torch.zeros_like(rewards_BT)
    following = torch.zeros_like(rewards_BT[:, 0])
    next_value = torch.zeros_like(following)
    for t in reversed(range(rewards_BT.shape[1])):
        real = mask_BT[:, t]
        delta = rewards_BT[:, t] + gamma * next_value - values_BT[:, t]
        following = torch.where(real, delta + gamma * lam * following, 0.0)
        next_value = torch.where(real, values_BT[:, t], 0.0)
        advantages_BT[:, t] = following
    return advantages_BT


def to_come(values_BT: Tensor) -> Tensor:
    """Sum of this and all later tokens' values, [B, T]."""
    return values_BT.flip(1).cumsum(1).flip(1)


def clipped_surrogate(
    ratio_BT: Tensor, advantages_BT: Tensor, low: float, high: float, ceiling: float = math.inf
) -> Tensor:
    """−min(min(r, ceiling)·A, clip(r, 1 − low, 1 + high)·A), [B, T] (Schulman et al. 2017, eq. 7).

    high > low is clip-higher (Yu et al. 2025, DAPO, eq. 8); a finite ceiling also bounds what a negative advantage can
    do (two-sided clip; Prime Intellect 2025, INTELLECT-2, eq. 1).
    """
    held_BT = ratio_BT.clamp(1 - low, 1 + high)
    return -torch.minimum(ratio_BT.clamp(max=ceiling) * advantages_BT, held_BT * advantages_BT)


def surrogate_clips(
    ratio_BT: Tensor, advantages_BT: Tensor, low: float, high: float, ceiling: float = math.inf
) -> Tensor:
    """True where `clipped_surrogate` is flat, so that the token has no gradient, [B, T]."""
    gained_BT = (ratio_BT > 1 + high) & (advantages_BT > 0)
    lost_BT = ((ratio_BT < 1 - low) | (ratio_BT > ceiling)) & (advantages_BT < 0)
    return gained_BT | lost_BT


def last_true(mask_BT: Tensor) -> Tensor:
    """Index of the last True of each row, [B]; rows are left-aligned and have at least one."""
    return mask_BT.sum(1).long() - 1


def adapt_kl_coef(coef: float, kl: float, *, target: float, samples: int, horizon: int) -> float:
    """The proportional controller of Ziegler et al. 2019: coef · (1 + clip(KL/target − 1, ±0.2) · n/horizon)."""
    return coef * (1 + min(max(kl / target - 1, -0.2), 0.2) * samples / horizon)


# Rewards closer than this are equal but for rounding: before the first update all of a DPO run are.
TIE = 1e-4


def share_above(gap_B: Tensor) -> Tensor:
    """How many gaps are positive, a scalar; a tie counts half."""
    return ((gap_B > TIE) + 0.5 * (gap_B.abs() <= TIE)).sum()


def explained_variance(returns: Tensor, errors: Tensor) -> Tensor:
    """1 − Var(returns − values) / Var(returns) from the two variances: 1 is a perfect critic, 0 a constant one."""
    return 1 - errors / returns.clamp(min=1e-8)


def kl_estimates(logps_BT: Tensor, ref_logps_BT: Tensor, mask_BT: Tensor) -> dict[str, Mean | Max]:
    """Every sampled estimate of KL(policy ‖ reference), per token, and the largest log-ratio."""
    estimators: tuple[Literal["k1", "k2", "k3"], ...] = ("k1", "k2", "k3")
    means: dict[str, Mean | Max] = {
        f"kl/{name}": Mean((kl_estimate(logps_BT, ref_logps_BT, name) * mask_BT).sum(), mask_BT.sum())
        for name in estimators
    }
    return means | {"kl/log_ratio_max": Max(((logps_BT - ref_logps_BT) * mask_BT).abs().max())}


def step_metrics(log_ratio_BT: Tensor, ratio_BT: Tensor, clipped_BT: Tensor, mask_BT: Tensor) -> dict[str, Mean | Max]:
    """How far one optimizer step's policy is from the one that sampled, and the share of tokens that the clip changes.

    `log_ratio_BT` is the tokens' own; `ratio_BT`, [B, T] or [B, 1], is what is clipped, where `clipped_BT` is True.
    """
    log_ratio_BT, tokens = log_ratio_BT * mask_BT, mask_BT.sum()
    return {
        "ratio/mean": Mean((ratio_BT * mask_BT).sum(), tokens),
        "ratio/max": Max((ratio_BT * mask_BT).max()),
        "clip_fraction": Mean((clipped_BT & mask_BT).sum(), tokens),
        "kl/step": Mean((log_ratio_BT.exp() - 1 - log_ratio_BT).sum(), tokens),
    }
