"""Reduction of element losses to a scalar, as in torch.nn.functional."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Reduction = Literal["mean", "sum", "none"]
"""mean: over items, or over the tokens of the mask. sum: used by the training loop, which divides by the count of
the global mini-batch. none: the loss of each item or token."""


def reduce(loss: Tensor, reduction: Reduction, mask: Tensor | None = None) -> Tensor:
    """`loss` reduced over all elements, or over those where `mask` (same shape) is True; 0 outside the mask.

    Raises ValueError for an unknown reduction.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction={reduction!r}: choose mean, sum or none")
    masked = loss if mask is None else loss * mask
    if reduction == "none":
        return masked
    if reduction == "sum":
        return masked.sum()
    return masked.sum() / (loss.numel() if mask is None else mask.sum())
