"""Importance weights for completions that another distribution than the policy sampled: an engine with other kernels,
quantised or older weights, or top-k and top-p.

    ρ_t = π_old(token) / π_sampler(token)        E_sampler[ρ · f] = E_policy[f] on what the sampler can sample

The gradient of each token is multiplied by its weight. Levels of the ratio: a ratio of each token; the product over the
completion (sequence); or their geometric mean. Bounds: `truncate` clips the ratio, which keeps all tokens at a bias
(TIS; Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training"); `mask` sets weights of
ratios outside the bounds to 0 (MIS; Liu et al. 2025, "When speed kills stability"; with both bounds at token level
IcePop, Ling Team 2025, "Every step evolves").

Axes: B completions, T completion tokens.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

ImportanceSamplingMode = Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask", "geometric_mask"]
"""Level of the ratio, and what happens to ratios outside the bounds."""

MAX_LOG_RATIO = 20.0
"""Bound of the logarithm of a ratio, exp(20) = 5e8: the product over a long completion must not become infinite."""


def sampling_ratio(
    old_logps: Tensor, sampling_logps: Tensor, mask: Tensor, mode: ImportanceSamplingMode = "token_truncate"
) -> Tensor:
    """π_old / π_sampler at the mode's level, [B, T]; 0 outside the mask.

    `old_logps` [B, T] are the policy's log-probabilities of the sampled tokens before the update, `sampling_logps`
    those of the distribution that sampled them.
    """
    log_ratio_BT = (old_logps - sampling_logps) * mask
    if not mode.startswith("token"):
        total_B1 = log_ratio_BT.sum(1, keepdim=True)
        log_ratio_BT = total_B1 / mask.sum(1, keepdim=True).clamp(min=1) if mode == "geometric_mask" else total_B1
    return log_ratio_BT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() * mask


def importance_weights(
    ratio: Tensor, mode: ImportanceSamplingMode = "token_truncate", *, clip_max: float = 3.0, clip_min: float = 0.0
) -> Tensor:
    """The weight of each token from its `sampling_ratio`: clipped to the bounds, or 0 outside them, [B, T].

    Raises ValueError for bounds in the wrong order.
    """
    if clip_min > clip_max:
        raise ValueError(f"clip_min={clip_min:g} is above clip_max={clip_max:g}")
    if mode.endswith("truncate"):
        return ratio.clamp(clip_min, clip_max)
    return ratio.where((ratio >= clip_min) & (ratio <= clip_max), torch.zeros_like(ratio))


def weighted_gradient(values: Tensor, weights: Tensor) -> Tensor:
    """`values`, whose gradient is multiplied by the constant `weights`.

    A surrogate of ratios of whole completions, which has one value for all tokens, so still weighs each of them.
    """
    return values.detach() + weights.detach() * (values - values.detach())
