"""Optimizer states of checkpoints by parameter name, so that a run can resume with another strategy.

Optimizers number their parameters in the order of their groups, and a sharded model has other groups than a whole one
(methods/optim.py). Lightning numbers those of a sharded model in the order of the module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    set_model_state_dict,
    set_optimizer_state_dict,
)

ORDER = "optimizer_order"
"""Key of a checkpoint's `postrain`: the name of the parameter behind each number of the optimizer state."""


def saved_order(module: nn.Module, optimizer: torch.optim.Optimizer, strategy: Strategy) -> list[str]:
    """The parameter names in the order in which the strategy numbers them in a checkpoint."""
    if isinstance(strategy, ModelParallelStrategy):
        return [name for name, _ in module.named_parameters()]
    return [name for group in grouped_names(module, optimizer) for name in group]


def grouped_names(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    """The names of the parameters of each group of an optimizer."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    return [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]


def by_name(saved: Mapping[str, Any], order: Sequence[str], groups: Sequence[Sequence[str]]) -> dict[str, Any]:
    """A saved state with the names of `order` for its numbers, in other groups.

    A group has the settings, such as the learning rate, of the saved group of its first parameter.
    Raises KeyError for a parameter that was not trained.
    """
    settings = {
        order[number]: {key: value for key, value in group.items() if key != "params"}
        for group in saved["param_groups"]
        for number in group["params"]
    }
    return {
        "state": {order[number]: state for number, state in saved["state"].items()},
        "param_groups": [{**settings[names[0]], "params": list(names)} for names in groups],
    }


def regrouped(saved: Mapping[str, Any], order: Sequence[str], groups: Sequence[Sequence[str]]) -> dict[str, Any]:
    """A saved state as an optimizer with these groups numbers it."""
    named = by_name(saved, order, groups)
    names = [name for group in named["param_groups"] for name in group["params"]]
    numbers = {name: number for number, name in enumerate(names)}
    return {
        "state": {numbers[name]: state for name, state in named["state"].items()},
        "param_groups": [
            {**group, "params": [numbers[name] for name in group["params"]]} for group in named["param_groups"]
        ],
    }


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for fully_shard that also loads the checkpoints of whole models.

    Lightning takes the numbers of any checkpoint for the order of the module. A checkpoint is one file of whole
    tensors, written by the first rank.
    """

    def __init__(self, ranks: int, *, reshard_after_forward: bool = True) -> None:
        self.reshard_after_forward = reshard_after_forward
        super().__init__(data_parallel_size=ranks, tensor_parallel_size=1, save_distributed_checkpoint=False)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Loads weights and optimizer states; returns the rest of the checkpoint."""
        path, module = Path(self.broadcast(checkpoint_path)), self.model
        assert module is not None
        checkpoint = torch.load(path, mmap=True, map_location="cpu", weights_only=weights_only)
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
        # Frozen weights are not in the checkpoint.
        set_model_state_dict(module, checkpoint.pop("state_dict"), options=options)
        order = checkpoint["postrain"].get(ORDER) or [name for name, _ in module.named_parameters()]
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            state = by_name(saved, order, grouped_names(module, optimizer))
            set_optimizer_state_dict(module, optimizer, state, options=options)
        return checkpoint
