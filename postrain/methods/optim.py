"""The optimizer and the learning-rate schedule of every method."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from postrain.errors import ConfigError, one_line
from postrain.methods.master_weights import MasterWeights, is_low_precision
from postrain.methods.muon import USE_MUON

LR_RATIO = "lr_ratio"
"""The key of a group whose learning rate is a multiple of the method's."""


def lr_factor(schedule: str, update: int, updates: int, warmup: float) -> float:
    """Learning-rate factor at `update` (from 0): linear warm-up over `warmup` · updates, then constant, or linear or
    cosine decay to 0 after the last update."""
    warmup_updates = round(warmup * updates)
    if update < warmup_updates:
        return (update + 1) / warmup_updates
    progress = (update - warmup_updates) / max(1, updates - warmup_updates)
    if schedule == "linear":
        return 1 - progress
    return 0.5 * (1 + math.cos(math.pi * progress)) if schedule == "cosine" else 1.0


def make_optimizer(
    module: nn.Module,
    make: Callable[..., torch.optim.Optimizer],
    *,
    lr: float,
    weight_decay: float,
    master_weights: bool = True,
    lr_ratio: float = 1.0,
) -> torch.optim.Optimizer:
    """The optimizer of all trainable parameters, `make(groups, lr=lr)`; 16-bit ones have float32 master weights.

    The learning rate of LoRA's B matrices is `lr_ratio` times `lr` (LoRA+, Hayou et al. 2024).
    """
    separate = getattr(getattr(make, "func", make), "separates_blocks", False)
    groups = parameter_groups(module, weight_decay, separate_blocks=separate)
    if lr_ratio != 1:
        groups = by_lr_ratio(module, groups, lr, lr_ratio)
    low_precision = any(is_low_precision(parameter) for group in groups for parameter in group["params"])
    build = partial(checked_optimizer, make=make, lr=lr, weight_decay=weight_decay)
    return MasterWeights(build, groups) if master_weights and low_precision else build(groups)


def parameter_groups(module: nn.Module, weight_decay: float, *, separate_blocks: bool = False) -> list[dict[str, Any]]:
    """Trainable parameters in groups: matrices with weight decay, all others without; sharded ones separately.

    With `separate_blocks`, each group has `use_muon`: whether it holds the two-dimensional matrices of the blocks.
    """
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {
            "params": [p for p in trainable if (p.ndim >= 2) is matrix and isinstance(p, DTensor) is sharded],
            "weight_decay": weight_decay if matrix else 0.0,
        }
        for matrix, sharded in itertools.product((True, False), (False, True))
    ]
    groups = [group for group in groups if group["params"]]
    return by_use_muon(module, groups) if separate_blocks else groups


def by_use_muon(module: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The groups split into two-dimensional matrices of transformer blocks, which are in module lists, and the rest."""
    blocks = [each for each in module.modules() if isinstance(each, nn.ModuleList)]
    matrices = {p for block in blocks for p in block.parameters() if p.ndim == 2}
    split = [
        {**group, "params": [p for p in group["params"] if (p in matrices) is muon], USE_MUON: muon}
        for group in groups
        for muon in (True, False)
    ]
    return [group for group in split if group["params"]]


def by_lr_ratio(module: nn.Module, groups: list[dict[str, Any]], lr: float, ratio: float) -> list[dict[str, Any]]:
    """The groups split into LoRA's B matrices, with `ratio` times the learning rate, and the rest."""
    matrices = {parameter for name, parameter in module.named_parameters() if "lora_B" in name}
    split = [
        {
            **group,
            "params": [p for p in group["params"] if (p in matrices) is chosen],
            **({"lr": lr * ratio, LR_RATIO: ratio} if chosen else {}),
        }
        for group in groups
        for chosen in (False, True)
    ]
    return [group for group in split if group["params"]]


def checked_optimizer(
    groups: list[dict[str, Any]], make: Callable[..., torch.optim.Optimizer], *, lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """`make(groups, lr=lr)`. Raises ConfigError for one that does not fit."""
    try:
        found: Any = make(groups, lr=lr)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optim: {one_line(error, limit=None)}") from None
    if not isinstance(found, torch.optim.Optimizer):
        raise ConfigError(f"optim: expected a torch optimizer, got {type(found).__name__}")
    if isinstance(found, torch.optim.LBFGS):
        raise ConfigError("optim: LBFGS evaluates the loss several times per step; use another optimizer")
    if weight_decay and "weight_decay" not in found.defaults:
        raise ConfigError(
            f"method.weight_decay={weight_decay:g}: {type(found).__name__} has no weight decay; set it to 0"
        )
    return found


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of each group to `rate` times its ratio. A loaded state may have another rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(LR_RATIO, 1.0)


def set_hyperparameters(optimizer: torch.optim.Optimizer, weight_decay: float, **others: Any) -> None:
    """Sets the weight decay of matrices and other settings of all groups, which a loaded state has from its run."""
    for group in optimizer.param_groups:
        matrices = any(parameter.ndim >= 2 for parameter in group["params"])
        if "weight_decay" in group:
            group["weight_decay"] = weight_decay if matrices else 0.0
        group.update({name: value for name, value in others.items() if name in group})
