"""What ranks owe each other: sums, gathered objects and gradients; every function is the identity on one rank.

Gradients are summed here, once a step, instead of by DistributedDataParallel's hooks: ranks may then cut their share
into different numbers of micro-batches, and a rank without rows in a mini-batch contributes zeros.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

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


def gather(value: T) -> list[T]:
    """One object of each rank, in rank order."""
    if world_size() == 1:
        return [value]
    found: list[T] = [value] * world_size()
    dist.all_gather_object(found, value)
    return found


def sum_gradients(parameters: Iterable[Parameter]) -> None:
    """Replace each gradient by its sum over ranks; a missing one counts as zero."""
    if world_size() == 1:
        return
    trainable = [p for p in parameters if p.requires_grad]
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trainable])
    dist.all_reduce(flat)
    for parameter, total in zip(trainable, flat.split([p.numel() for p in trainable]), strict=True):
        parameter.grad = total.view_as(parameter).clone()
