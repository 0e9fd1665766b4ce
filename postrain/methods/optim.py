"""The optimizer and the learning-rate schedule of every method."""

from __future__ import annotations

import itertools
import math

import torch
from torch import nn
from torch.distributed.tensor import DTensor


def lr_factor(schedule: str, update: int, updates: int, warmup: float) -> float:
    """What the learning rate is multiplied with at `update` (from 0): a linear rise over `warmup` · updates, then
    constant, or falling to 0 after the last update, linearly or as half a cosine."""
    rise = round(warmup * updates)
    if update < rise:
        return (update + 1) / rise
    progress = (update - rise) / max(1, updates - rise)
    if schedule == "linear":
        return 1 - progress
    return 0.5 * (1 + math.cos(math.pi * progress)) if schedule == "cosine" else 1.0


def make_optimizer(
    module: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float], eps: float
) -> torch.optim.AdamW:
    """AdamW with decay on matrices only. torch adds eps to the bias-corrected root, TensorFlow to the raw one: with the
    same eps early steps differ by a factor of several, which is why it is a setting."""
    learns = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {
            "params": [p for p in learns if (p.ndim >= 2) is matrix and isinstance(p, DTensor) is sharded],
            "weight_decay": weight_decay if matrix else 0.0,
        }
        for matrix, sharded in itertools.product((True, False), (False, True))
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, eps=eps, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets each group's rate to `factor` times the one it was made with."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
