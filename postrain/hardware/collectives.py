"""What ranks owe each other: sums, gathered objects, gradients and shards; every function is the identity on one rank.

Gradients are summed here, once a step, instead of by DistributedDataParallel's hooks: ranks may then cut their share
into different numbers of micro-batches, and a rank without rows in a mini-batch contributes zeros. Sharded parameters
(DTensors) are the exception: PyTorch sums them while it scatters them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import Parameter

from postrain.losses.advantages import whiten

T = TypeVar("T")


def world_size() -> int:
    """Ranks in the process group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number in the group; 0 without one."""
    return dist.get_rank() if world_size() > 1 else 0


def all_sum(value: Tensor) -> Tensor:
    """Sum of a tensor over ranks."""
    if world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def moments(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, population variance and number of the masked values of all ranks, float64 scalars; 0 where there are none.

    In two passes, the second over differences to the mean: E[x²] − E[x]² cancels where the spread is small beside the
    mean.
    """
    known_N = values[mask].double()
    total, count = all_sum(torch.stack([known_N.sum(), mask.sum().double()]))
    mean = total / count.clamp(min=1)
    return mean, all_sum(((known_N - mean) ** 2).sum()) / count.clamp(min=1), count


def whiten_globally(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Values with mean 0 and variance 1 over the real tokens of the global batch; 0 outside the mask."""
    mean, variance, _ = moments(values_BT, mask_BT)
    return whiten(values_BT.masked_fill(~mask_BT, 0.0), mask_BT, mean=mean, variance=variance)


def gather(value: T) -> list[T]:
    """One object of each rank, in rank order."""
    if world_size() == 1:
        return [value]
    found: list[T] = [value] * world_size()
    dist.all_gather_object(found, value)
    return found


def sum_gradients(parameters: Sequence[Parameter]) -> None:
    """Replace each gradient by its sum over ranks; one that only some ranks have counts as zero elsewhere."""
    for parameter in parameters:
        if isinstance(parameter, DTensor) and parameter.grad is not None:
            parameter.grad *= world_size()  # fully_shard has left the mean over ranks
    whole = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
    if world_size() == 1 or not whole:
        return
    # Where no rank has one (a frozen policy in a critic's warm-up) there is none, or Adam would step by its momentum.
    present = all_sum(torch.tensor([p.grad is not None for p in whole], dtype=torch.float32, device=whole[0].device))
    whole = [parameter for parameter, found in zip(whole, present.tolist(), strict=True) if found]
    if not whole:
        return
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in whole])
    dist.all_reduce(flat)
    for parameter, total in zip(whole, flat.split([p.numel() for p in whole]), strict=True):
        parameter.grad = total.view_as(parameter).clone()


def clip_gradients(parameters: Sequence[Parameter], max_norm: float) -> Tensor:
    """Scales gradients so that their norm over whole and sharded parameters is at most `max_norm`; the norm before."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    whole = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    shards = [gradient.to_local() for gradient in gradients if isinstance(gradient, DTensor)]
    norm = nn.utils.get_total_norm(whole)
    if shards:
        norm = (norm**2 + all_sum(nn.utils.get_total_norm(shards) ** 2)).sqrt()
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for gradient in (*whole, *shards):
        gradient.mul_(factor)
    return norm


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shards every transformer block over the ranks of `mesh` (PyTorch's fully_shard); what is not in a block, such as
    the embedding, stays whole, since scoring and sampling call trunk and head by themselves.

    Blocks keep their gathered weights from a forward to the next backward, so a rollout gathers each only once.
    """
    for blocks in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
        for block in blocks:
            if not isinstance(block, FSDPModule):
                fully_shard(block, mesh=mesh, reshard_after_forward=False)


def full_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """A sharded model's state, put together on the first rank, {} on the others; all ranks have to call it."""
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return cast("dict[str, Tensor]", state)
