"""The losses of `method.loss`: functions of log-probabilities and advantages, and the table POLICY_LOSSES.

    loss(logps, old_logps, advantages, mask, *, OPTIONS) -> PolicyTerms, or the loss of each token

Arguments as in policy_gradient.py, with `advantages` [B, T]. A loss is [B, T], or [B, 1] for one value per completion,
and undefined outside the mask; `completion_weights` aggregates it. With ratio 1 all of them have the gradient
−A ∇log π. Keyword arguments are the options that `method.loss_options` sets; the defaults are those of the papers.

    r_t = π(token) / π_old(token)        s = (Π_t r_t)^(1/length)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from postrain.losses.importance_sampling import MAX_LOG_RATIO
from postrain.losses.token_selection import clip_cov_tokens, kl_cov_tokens
from postrain.types import NonNegative, Positive

ImportanceSamplingLevel = Literal["token", "sequence", "completion"]
"""Level of the importance ratio. token: a ratio per token. sequence: the geometric mean of a completion's token ratios,
(π/π_old)^(1/length) (Zheng et al. 2025, GSPO, eq. 7). completion: their product (RLOO)."""


class PolicyTerms(NamedTuple):
    """The terms of a policy-gradient loss before reduction."""

    loss_BT: Tensor
    """The surrogate at each token, differentiable, or [B, 1]; outside the mask it is undefined."""
    ratio: Tensor
    """The importance ratio, differentiable, [B, T] or [B, 1]."""
    clipped_BT: Tensor
    """True where the clip changes the gradient."""


def importance_ratio(log_ratio: Tensor, mask: Tensor, level: ImportanceSamplingLevel = "token") -> Tensor:
    """π/π_old from log π − log π_old [B, T]: per token, [B, T], or per completion, [B, 1].

    At most exp(MAX_LOG_RATIO), and constant there: the gradient of an infinite ratio is NaN, also beyond a clip.
    """
    if level != "token":
        log_ratio = (log_ratio * mask).sum(1, keepdim=True)
    if level == "sequence":
        log_ratio = log_ratio / mask.sum(1, keepdim=True).clamp(min=1)
    return log_ratio.clamp(max=MAX_LOG_RATIO).exp()


def clipped_surrogate(
    ratio: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float, delta: float | None = None
) -> Tensor:
    """−min(min(r, delta)·A, clip(r, 1 − low, 1 + high)·A) at each token (Schulman et al. 2017, PPO, eq. 7).

    high > low is clip-higher (Yu et al. 2025, DAPO, eq. 8); `delta` also bounds the ratio at negative
    advantages (two-sided clip; Prime Intellect 2025, INTELLECT-2, eq. 1).
    """
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratio.clamp(max=math.inf if delta is None else delta) * advantages, clipped * advantages)


def surrogate_clips(
    ratio: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float, delta: float | None = None
) -> Tensor:
    """True for tokens where `clipped_surrogate` is constant, so that they have no gradient."""
    upper = (ratio > 1 + clip_high) & (advantages > 0)
    lower = ((ratio < 1 - clip_low) | (ratio > (math.inf if delta is None else delta))) & (advantages < 0)
    return upper | lower


def clipped(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: Positive = 0.2,
    clip_high: Positive = 0.2,
    delta: Positive | None = None,
    importance_sampling_level: ImportanceSamplingLevel = "token",
) -> PolicyTerms:
    """`clipped_surrogate`, the loss of PPO and GRPO. Tokens beyond the clip have no gradient.

    Raises ValueError for a `delta` within the upper clip.
    """
    if delta is not None and delta <= 1 + clip_high:
        raise ValueError(f"delta={delta:g}: expected a bound above the upper clip, 1 + clip_high = {1 + clip_high:g}")
    ratio = importance_ratio(logps - old_logps, mask, importance_sampling_level)
    bounds = {"clip_low": clip_low, "clip_high": clip_high, "delta": delta}
    return PolicyTerms(
        clipped_surrogate(ratio, advantages, **bounds), ratio, surrogate_clips(ratio.detach(), advantages, **bounds)
    )


def gspo(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: Positive = 3e-4,
    clip_high: Positive = 4e-4,
) -> PolicyTerms:
    """−min(s A, clip(s, 1 − low, 1 + high) A), one ratio per completion (Zheng et al. 2025, GSPO, arXiv 2507.18071,
    eq. 5)."""
    level: ImportanceSamplingLevel = "sequence"
    return clipped(
        logps,
        old_logps,
        advantages,
        mask,
        clip_low=clip_low,
        clip_high=clip_high,
        importance_sampling_level=level,
    )


def cispo(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: Positive = 0.2,
    clip_high: Positive = 0.2,
    importance_sampling_level: ImportanceSamplingLevel = "token",
) -> PolicyTerms:
    """−stop_gradient(clip(r, 1 − low, 1 + high))·A·log π: no token loses its gradient (MiniMax 2025, MiniMax-M1,
    arXiv 2506.13585, eq. 4). The paper has no lower clip: clip_low=1."""
    ratio = importance_ratio(logps - old_logps, mask, importance_sampling_level)
    loss_BT = -ratio.clamp(1 - clip_low, 1 + clip_high).detach() * advantages * logps
    bounded = ((ratio < 1 - clip_low) | (ratio > 1 + clip_high)) & (advantages != 0)
    return PolicyTerms(loss_BT, ratio, bounded.detach())


def gmpo(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: Positive = 0.4,
    clip_high: Positive = 0.4,
) -> PolicyTerms:
    """−A·(Π_t c_t)^(1/length) with c_t = min(r_t, e^high) for A > 0 and max(r_t, e^−low) for A < 0: the geometric mean
    of the clipped token ratios, one value per completion (Zhao et al. 2025, GMPO, arXiv 2507.20673). The clip
    bounds log-ratios: 0.4 is the interval (0.67, 1.49)."""
    log_ratio_BT = logps - old_logps
    upper_BT, lower_BT = log_ratio_BT.clamp(max=clip_high), log_ratio_BT.clamp(min=-clip_low)
    bounded_BT = torch.where(advantages >= 0, upper_BT, lower_BT)
    ratio_B1 = importance_ratio(bounded_BT, mask, "sequence")
    return PolicyTerms(-advantages * ratio_B1, ratio_B1, (bounded_BT != log_ratio_BT).detach() & (advantages != 0))


def sapo(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    tau_pos: Positive = 1.0,
    tau_neg: Positive = 1.05,
) -> PolicyTerms:
    """−(4/τ)·σ(τ(r − 1))·A with τ = tau_pos for A > 0, else tau_neg (Gao et al. 2025, SAPO, arXiv 2511.20347).

    A soft gate instead of the clip: the gradient has the weight 4σ(1 − σ) ≤ 1, which is 1 at r = 1 and decays on both
    sides, faster for a larger τ.
    """
    ratio_BT = importance_ratio(logps - old_logps, mask)
    tau_BT = torch.where(advantages > 0, tau_pos, tau_neg).to(ratio_BT)
    gate_BT = torch.sigmoid(tau_BT * (ratio_BT - 1)) * 4 / tau_BT
    return PolicyTerms(-gate_BT * advantages, ratio_BT, torch.zeros_like(mask))


def clip_cov(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    selected: Tensor,
    clip_low: Positive = 0.2,
    clip_high: Positive = 0.2,
) -> PolicyTerms:
    """`clipped`, without a gradient for the `selected` tokens [B, T], which `clip_cov_tokens` draws (Cui et al. 2025,
    Clip-Cov, arXiv 2505.22617): they would lower the entropy most."""
    kept_BT = advantages.masked_fill(selected, 0.0)
    terms = clipped(logps, old_logps, kept_BT, mask, clip_low=clip_low, clip_high=clip_high)
    return terms._replace(clipped_BT=terms.clipped_BT | selected)


def kl_cov(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    selected: Tensor,
    ppo_kl_coef: NonNegative = 1.0,
) -> PolicyTerms:
    """−r A, plus ppo_kl_coef·|log r| for the `selected` tokens [B, T], those of `kl_cov_tokens` (Cui et al. 2025,
    KL-Cov, arXiv 2505.22617; |log r| is the estimate of KL(π_old ‖ π) of its code). It has no clip. The penalty
    has no gradient at ratio 1: it needs several mini-batches or epochs."""
    log_ratio_BT = logps - old_logps
    ratio_BT = importance_ratio(log_ratio_BT, mask)
    loss_BT = -ratio_BT * advantages + ppo_kl_coef * log_ratio_BT.abs() * selected
    return PolicyTerms(loss_BT, ratio_BT, selected & mask)


@dataclass(frozen=True)
class PolicyLoss:
    """A loss, and how it selects tokens."""

    function: Callable[..., PolicyTerms | Tensor]
    select: Callable[..., Tensor] | None = None
    """Selects tokens once per rollout, from the old log-probabilities, advantages and random numbers of all its tokens
    on all ranks, [N] each, → [N]; see token_selection.py. The loss gets them as `selected` [B, T]."""


PolicyLossName = Literal["clipped", "gspo", "cispo", "gmpo", "sapo", "clip_cov", "kl_cov"]
POLICY_LOSSES: Mapping[str, PolicyLoss] = {
    "clipped": PolicyLoss(clipped),
    "gspo": PolicyLoss(gspo),
    "cispo": PolicyLoss(cispo),
    "gmpo": PolicyLoss(gmpo),
    "sapo": PolicyLoss(sapo),
    "clip_cov": PolicyLoss(clip_cov, clip_cov_tokens),
    "kl_cov": PolicyLoss(kl_cov, kl_cov_tokens),
}


def policy_terms(found: PolicyTerms | Tensor, log_ratio: Tensor) -> PolicyTerms:
    """The result of a loss that returns only the loss of each token, with the ratio of each token and no clip."""
    if isinstance(found, PolicyTerms):
        return found
    return PolicyTerms(found, log_ratio.exp(), torch.zeros_like(log_ratio, dtype=torch.bool))
