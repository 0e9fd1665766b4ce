"""Optimizer states of checkpoints by parameter name, so that a run can resume with another strategy.

Optimizers number their parameters in the order of their groups, and a sharded model may have other groups than a whole
one (methods/optim.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from postrain.hardware.sharded_checkpoint import SHARDED, ShardedSave, ShardReader, joined
from postrain.hardware.sharding import device_mesh, sharded_parameters
from postrain.runs.status import SHARDS

ORDER = "optimizer_order"
"""Key of a checkpoint's `postrain`: the name of the parameter behind each number of the optimizer state."""
IN_BACKGROUND = "in background"
"""The storage option with which ShardedStrategy returns before a checkpoint is written."""


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


def regroup(checkpoint: dict[str, Any], module: LightningModule, order: Sequence[str] | None) -> None:
    """Renumbers the optimizer states of a sharded model, whose groups differ, as the optimizer of `module` does."""
    # Earlier versions numbered the parameters of a sharded model in the order of the module.
    of_sharded = checkpoint.get(SHARDED) or order == [name for name, _ in module.named_parameters()]
    states = checkpoint.get("optimizer_states")
    if order and states and of_sharded:
        optimizer: Any = module.configure_optimizers()
        groups = grouped_names(module, optimizer)
        checkpoint["optimizer_states"] = [regrouped(state, order, groups) for state in states]


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for fully_shard, whose checkpoints any other strategy can load, and which loads theirs.

    Each rank writes and reads its own shards (sharded_checkpoint.py).
    """

    def __init__(self, ranks: int, shards: int, *, reshard_after_forward: bool = True) -> None:
        self.shards, self.reshard_after_forward = shards, reshard_after_forward
        self.saving: ShardedSave | None = None
        """The last checkpoint that was saved with `storage_options=IN_BACKGROUND`, until it is finished."""
        super().__init__(data_parallel_size=ranks, tensor_parallel_size=1)

    @property
    def mesh(self) -> DeviceMesh:
        """The ranks over which models are sharded; Lightning's own mesh is of another kind."""
        return device_mesh(self.root_device.type, self.world_size, self.shards)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The shards of the trained weights, by name."""
        module = self.model
        assert module is not None
        return {name: weight.detach() for name, weight in sharded_parameters(module).items() if weight.requires_grad}

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The state of the optimizer, numbered as by itself."""
        return optimizer.state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Writes the file and the folder of its shards. With IN_BACKGROUND, the caller finishes `saving`."""
        saving = ShardedSave(checkpoint, Path(self.broadcast(filepath)))
        if storage_options == IN_BACKGROUND:
            self.saving = saving
        else:
            saving.finish()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Loads weights and optimizer states; returns the rest of the checkpoint."""
        path, module = Path(self.broadcast(checkpoint_path)), self.model
        assert module is not None
        checkpoint = torch.load(path, mmap=True, map_location="cpu", weights_only=weights_only)
        order = checkpoint["postrain"].get(ORDER) or list(sharded_parameters(module))
        if checkpoint.get(SHARDED):
            checkpoint = self._read_shards(checkpoint, path, module)
            states = checkpoint.pop("optimizer_states")
            for optimizer, saved in zip(self.optimizers, states, strict=True):
                optimizer.load_state_dict(regrouped(saved, order, grouped_names(module, optimizer)))
            return checkpoint
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
        # Frozen weights are not in the checkpoint.
        set_model_state_dict(module, checkpoint.pop("state_dict"), options=options)
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            state = by_name(saved, order, grouped_names(module, optimizer))
            set_optimizer_state_dict(module, optimizer, state, options=options)
        return checkpoint

    def _read_shards(self, checkpoint: dict[str, Any], path: Path, module: nn.Module) -> dict[str, Any]:
        """The checkpoint with the shards of this rank, without the weights, which are read into the parameters."""
        reader, parameters = ShardReader(path.with_suffix(SHARDS)), sharded_parameters(module)
        order = checkpoint["postrain"][ORDER]
        tensors: dict[str, Any] = {}
        for name in reader.tensors:
            keys: list[Any] = json.loads(name)
            if keys[0] == "state_dict":
                tensors[name] = parameters[keys[1]].detach()
                continue
            if keys[0] == "optimizer_states":  # [..., 0, "state", the number of the parameter, "exp_avg"]
                number: int = keys[3]
                like = parameters[order[number]]
            else:  # ["postrain", "state", "reference", the name of the parameter in the policy]
                like = module.get_parameter(f"policy.{keys[-1]}")
            tensors[name] = reader.empty(name, like=like)
        reader.read(tensors)
        joined(checkpoint, tensors)
        with torch.no_grad():
            for name, weight in checkpoint.pop("state_dict").items():
                if not isinstance(weight, DTensor):
                    parameters[name].copy_(weight)
        return checkpoint
