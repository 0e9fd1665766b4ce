"""The optimizer and the learning-rate schedule of every method."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from postrain.errors import ConfigError


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
    return torch.optim.AdamW(parameter_groups(module, weight_decay), lr=lr, betas=betas, eps=eps, fused=True)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in groups: matrices with weight decay, all others without; sharded ones separately."""
    learns = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {
            "params": [p for p in learns if (p.ndim >= 2) is matrix and isinstance(p, DTensor) is sharded],
            "weight_decay": weight_decay if matrix else 0.0,
        }
        for matrix, sharded in itertools.product((True, False), (False, True))
    ]
    return [group for group in groups if group["params"]]


def chosen_optimizer(
    module: nn.Module, make: Callable[..., torch.optim.Optimizer], *, lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Another optimizer over all trainable parameters: `make(groups, lr=lr)`, with weight decay on matrices only."""
    try:
        found: Any = make(parameter_groups(module, weight_decay), lr=lr)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optim: {' '.join(str(error).split())}") from None
    if not isinstance(found, torch.optim.Optimizer):
        raise ConfigError(f"optim: expected a torch optimizer, got {type(found).__name__}")
    if isinstance(found, torch.optim.LBFGS):
        raise ConfigError("optim: LBFGS evaluates the loss several times a step, and a step has one mini-batch")
    if weight_decay and "weight_decay" not in found.defaults:
        raise ConfigError(f"method.weight_decay={weight_decay:g}: {type(found).__name__} has none; leave it 0")
    return found


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets each group's rate to `factor` times the one it was made with."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
