"""Supervised losses: next-token cross-entropy, Bradley-Terry for reward models, step labels for process rewards.

Axes: B items, T tokens (left-aligned, padded), S steps, N tokens of a whole batch, V vocabulary. Log-probabilities are
natural. Each function takes `reduction`: mean, sum or none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn.functional import logsigmoid

from postrain.losses.reduction import Reduction, reduce


class _TokenLogps(torch.autograd.Function):
    """log softmax at the targets. Autograd's backward pass reads or writes [N, V] six times; this one three times."""

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


def token_logps(logits: Tensor, targets: Tensor) -> Tensor:
    """log softmax of each row of `logits` [N, V] at its target [N] (int64), [N]."""
    found = _TokenLogps.apply(logits, targets)
    assert isinstance(found, Tensor)
    return found


def sft(logps: Tensor, mask: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """−log π(token | prefix), a mean over tokens: the loss of SFT and of pretraining.

    `logps` [B, T] are the policy's log-probabilities of the data's tokens, `mask` [B, T] is True at supervised tokens.
    """
    return reduce(-logps, reduction, mask)


def dft(logps: Tensor, mask: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """−stop_gradient(π) · log π of a token: dynamic fine-tuning (Wu et al. 2025, DFT, arXiv 2508.05629, eq. 9).

    Removes the weight 1/π that the gradient of SFT has as a policy gradient: unlikely tokens count less.
    """
    return reduce(-logps.exp().detach() * logps, reduction, mask)


def eaft(
    logps: Tensor, mask: Tensor, *, entropy: Tensor, top_k: Annotated[int, Ge(2)] = 20, reduction: Reduction = "mean"
) -> Tensor:
    """−min(1, H / ln top_k) · log π of a token: entropy-adaptive fine-tuning (Diao et al. 2026, EAFT, arXiv
    2601.02151).

    Tokens at which the policy is certain of another answer count less. `entropy` [B, T] is exact; the authors
    approximate it by that of the top_k most likely tokens.
    """
    return reduce(-(entropy.detach() / math.log(top_k)).clamp(max=1) * logps, reduction, mask)


SFTLossName = Literal["nll", "dft", "eaft"]
SFT_LOSSES: Mapping[str, Callable[..., Tensor]] = {"nll": sft, "dft": dft, "eaft": eaft}
"""The losses of `method.loss` of SFT, functions of `logps` and `mask`, and of `entropy` if they name it."""


def l2_distance(parameters: Sequence[Tensor], initial: Sequence[Tensor]) -> Tensor:
    """Σ (θ − θ₀)² over all parameters, a scalar (L2-SP of Li, Grandvalet and Davoine 2018)."""
    return torch.stack([((now - then) ** 2).sum() for now, then in zip(parameters, initial, strict=True)]).sum()


def bradley_terry(
    chosen_rewards: Tensor,
    rejected_rewards: Tensor,
    margin: Tensor | float = 0.0,
    *,
    center_rewards_coefficient: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """−log σ(r_c − r_r − margin) + center_rewards_coefficient · (r_c + r_r)², a mean over pairs: the loss of a
    reward model.

    All tensors are [B] (Bradley and Terry 1952; Llama 2, eq. 2, has the margin). The second term centres
    rewards at 0, which Bradley-Terry determines only up to a constant (Eisenstein et al. 2023).
    """
    loss_B = -logsigmoid(chosen_rewards - rejected_rewards - margin)
    return reduce(loss_B + center_rewards_coefficient * (chosen_rewards + rejected_rewards) ** 2, reduction)


def prm(logits: Tensor, labels: Tensor, mask: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """−log σ(z) of a right step and −log(1 − σ(z)) of a wrong one, a mean over steps: a process reward model's loss.

    `logits` [B, S] are read at the last token of each step; `labels` [B, S] is True for right steps, `mask` [B, S] for
    steps in the loss (Uesato et al. 2022; Lightman et al. 2023).
    """
    return reduce(-logsigmoid(torch.where(labels, logits, -logits)), reduction, mask)
