"""Policy-gradient losses: PPO's clipped surrogate, GRPO and its family, RLOO, REINFORCE++ and Nash-MD.

    surrogate_t = −min(r_t A_t, clip(r_t, 1 − clip_low, 1 + clip_high) A_t)        r_t = π(token) / π_old(token)

With one pass over a rollout the ratio is 1, and the gradient is REINFORCE's, −A ∇log π.

Axes: B completions, T completion tokens (left-aligned, padded). Arguments: `logps` [B, T] are the policy's
log-probabilities of the sampled tokens, differentiable; `old_logps` [B, T] those of the sampling policy; `advantages`
[B, T], or [B] with one advantage per completion; `mask` [B, T] is True or 1 at completion tokens; `importance_weights`
[B, T] multiply the gradient of each token, not the value of the loss, where another distribution sampled it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from postrain.losses.divergence import SampledKL, kl
from postrain.losses.importance_sampling import weighted_gradient
from postrain.losses.policy_losses import (
    POLICY_LOSSES,
    PolicyLossName,
    PolicyTerms,
    clipped,
    importance_ratio,
    policy_terms,
)
from postrain.losses.reduction import Reduction, reduce

LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo"]


def completion_weights(
    lengths: Tensor,
    counted: Tensor,
    loss_type: LossType = "grpo",
    *,
    max_tokens: int | None = None,
    tokens: Tensor | None = None,
    completions: int | None = None,
) -> Tensor:
    """Weight of each completion's tokens in the loss sum, which is divided by the number of completions, [B].

    grpo: mean over completions of their token means (Shao et al. 2024). dr_grpo: sum over completions divided by
    `max_tokens`, without a length bias (Liu et al. 2025). dapo: mean over all `tokens` of the batch (Yu et al.
    2025). bnpo: mean over the tokens of a mini-batch, with the number of tokens as divisor. `counted` [B] is False for
    excluded completions; `tokens` and `completions` are totals over the global batch, by default over these
    completions.
    """
    if loss_type == "grpo":
        return counted / lengths
    if loss_type == "bnpo":
        return counted.float()
    if loss_type == "dr_grpo":
        if max_tokens is None:
            raise ValueError("max_tokens: loss_type=dr_grpo divides by it; give the length limit of a completion")
        return counted / max_tokens
    tokens = (lengths * counted).sum() if tokens is None else tokens
    return counted * ((len(lengths) if completions is None else completions) / tokens.clamp(min=1))


def weighted_sum(loss: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Σ over completions of weight [B] · Σ over tokens of the loss, [B, T] or [B, 1] (the same for all tokens)."""
    # Not a product with the mask: the loss may be NaN outside of it.
    return (torch.where(mask, loss, 0.0) * weights[:, None]).sum()


def weighted_logps(logps: Tensor, importance_weights: Tensor | None) -> Tensor:
    """`logps`, whose gradient is multiplied by the weights, if there are any."""
    return logps if importance_weights is None else weighted_gradient(logps, importance_weights)


def grpo(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    loss: PolicyLossName | Callable[..., PolicyTerms | Tensor] = "clipped",
    loss_type: LossType = "grpo",
    max_tokens: int | None = None,
    ref_logps: Tensor | None = None,
    beta: float = 0.0,
    kl_estimator: SampledKL = "k3",
    importance_weights: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Group relative policy optimisation and its family, a scalar (Shao et al. 2024, DeepSeekMath, eq. 3):

        1/B Σ_i 1/|o_i| Σ_t [ −min(r A, clip(r, 1 − clip_low, 1 + clip_high) A) + β KL(π ‖ π_ref) ]

    `advantages` come from `group_advantages`. `loss` replaces the surrogate: a name of policy_losses.py, or a function
    with the same arguments; `options` are its keyword arguments, such as clip_low. DAPO is loss_type=dapo with
    clip_high > clip_low, Dr. GRPO is loss_type=dr_grpo. `ref_logps` [B, T] are required if beta > 0. Raises ValueError
    for contradicting options.
    """
    mask = mask.bool()
    advantages_BT = advantages[:, None].expand_as(logps) if advantages.ndim == 1 else advantages
    weighted_BT = weighted_logps(logps, importance_weights)
    function = POLICY_LOSSES[loss].function if isinstance(loss, str) else loss
    found = function(weighted_BT, old_logps, advantages_BT, mask, **options)
    loss_BT = policy_terms(found, weighted_BT - old_logps).loss_BT
    if beta:
        if ref_logps is None:
            raise ValueError(f"ref_logps: beta={beta:g} weighs a KL to the reference; give its log-probabilities")
        loss_BT = loss_BT + beta * kl(logps, ref_logps, kl_estimator)
    lengths_B = mask.sum(1)
    weight_B = completion_weights(lengths_B.clamp(min=1), lengths_B > 0, loss_type, max_tokens=max_tokens)
    return weighted_sum(loss_BT, mask, weight_B) / (lengths_B.sum() if loss_type == "bnpo" else len(mask))


def rloo(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    importance_weights: Tensor | None = None,
) -> Tensor:
    """The clipped surrogate with the ratio of whole completions, the product of token ratios (Ahmadian et al. 2024,
    "Back to basics"), a mean over completions; `advantages` come from `leave_one_out`."""
    return grpo(
        logps,
        old_logps,
        advantages,
        mask,
        clip_low=clip_low,
        clip_high=clip_high,
        importance_sampling_level="completion",
        importance_weights=importance_weights,
    )


def reinforce(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    importance_weights: Tensor | None = None,
) -> Tensor:
    """REINFORCE++ (Hu et al. 2025): the clipped token surrogate, a mean over completions of their token means;
    `advantages` are rewards minus a baseline, whitened over the batch by `whiten`."""
    return grpo(
        logps,
        old_logps,
        advantages,
        mask,
        clip_low=clip_low,
        clip_high=clip_high,
        importance_weights=importance_weights,
    )


def ppo(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    delta: float | None = None,
    importance_weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """PPO's policy loss, the clipped surrogate as a mean over tokens (Schulman et al. 2017, eq. 7); `advantages` come
    from `gae`, whitened by `whiten`. `delta` is the dual clip. `ppo_value` is the critic's loss."""
    clips = {"clip_low": clip_low, "clip_high": clip_high, "delta": delta}
    terms = clipped(weighted_logps(logps, importance_weights), old_logps, advantages, mask, **clips)
    return reduce(terms.loss_BT, reduction, mask)


def ppo_value(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    clip: float = 0.2,
    reduction: Reduction = "mean",
) -> Tensor:
    """½ max((v − R)², (v_clipped − R)²), a mean over tokens; v_clipped is v clipped to old value ± clip.

    All tensors are [B, T]; `returns` is the unwhitened advantage + the old value.
    """
    clipped_BT = old_values + (values - old_values).clamp(-clip, clip)
    return reduce(0.5 * torch.maximum((values - returns) ** 2, (clipped_BT - returns) ** 2), reduction, mask)


def nash_md(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    importance_weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """−Σ_t r_t A_t of each completion, a mean over completions (Munos et al. 2023, Nash-MD-PG); `advantages` come from
    `nash_md_advantages`. Its gradient at ratio 1 is that of A · log π."""
    logps = weighted_logps(logps, importance_weights)
    loss_BT = -(importance_ratio(logps - old_logps, mask) * advantages * mask)
    return loss_BT.sum() if reduction == "sum" else reduce(loss_BT.sum(1), reduction)
