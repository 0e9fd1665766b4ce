"""Collective operations over ranks: sums, gathered objects and gradients. Each is the identity on one rank.

Gradients are summed here once per step instead of by DistributedDataParallel's hooks, so ranks may use different
numbers of micro-batches, and a rank without rows in a mini-batch contributes zeros. PyTorch's reduce-scatter sums the
gradients of sharded parameters (DTensors).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import Parameter

from postrain.losses.advantages import whiten
from postrain.precision import widen

T = TypeVar("T")
BUCKET_ELEMENTS = 2**25
"""Elements of the gradients that are copied and summed together: 128 MiB in float32, beside the gradients."""


def world_size() -> int:
    """Number of ranks in the process group; 1 without a group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Rank of this process in the group; 0 without a group."""
    return dist.get_rank() if world_size() > 1 else 0


def all_sum(value: Tensor) -> Tensor:
    """Sum of a tensor over ranks."""
    if world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def moments(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, population variance and count of the masked values of all ranks, scalars of the device's widest type.

    All are 0 without values.

    Two passes, the second over differences to the mean: E[x²] − E[x]² cancels when the variance is small relative to
    the mean.
    """
    values_N = widen(values[mask])
    total, count = all_sum(torch.stack([values_N.sum(), mask.sum().to(values_N.dtype)]))
    mean = total / count.clamp(min=1)
    return mean, all_sum(((values_N - mean) ** 2).sum()) / count.clamp(min=1), count


def whiten_globally(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Values normalized to mean 0 and variance 1 over the masked tokens of the global batch; 0 outside the mask."""
    mean, variance, _ = moments(values_BT, mask_BT)
    return whiten(values_BT.masked_fill(~mask_BT, 0.0), mask_BT, mean=mean, variance=variance)


def gather(value: T) -> list[T]:
    """The objects of all ranks, in rank order."""
    if world_size() == 1:
        return [value]
    found: list[T] = [value] * world_size()
    dist.all_gather_object(found, value)
    return found


def concatenate(values: Sequence[Tensor]) -> tuple[list[Tensor], slice]:
    """Tensors of one length, concatenated over the ranks on the CPU, and the place of this rank's part."""
    parts = gather([each.cpu() for each in values])
    start = sum(len(part[0]) for part in parts[: rank()])
    return [torch.cat(each) for each in zip(*parts, strict=True)], slice(start, start + len(values[0]))


def sum_gradients(parameters: Sequence[Parameter]) -> None:
    """Replaces each gradient by its sum over ranks; a gradient missing on some ranks counts as zero there.

    Gradients of sharded parameters are sums already (sharding.py).
    """
    whole = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
    if world_size() == 1 or not whole:
        return
    # A gradient that no rank has (a frozen policy in critic warm-up) stays None, or Adam would step by its momentum.
    present = all_sum(torch.tensor([p.grad is not None for p in whole], dtype=torch.float32, device=whole[0].device))
    whole = [parameter for parameter, found in zip(whole, present.tolist(), strict=True) if found]
    if not whole:
        return
    for bucket in in_buckets(whole):
        flat = torch.cat(
            [(torch.zeros_like(p, dtype=grad_dtype(p)) if p.grad is None else p.grad).flatten() for p in bucket]
        )
        dist.all_reduce(flat)
        for parameter, total in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
            parameter.grad = total.view_as(parameter).to(grad_dtype(parameter), copy=True)


def grad_dtype(parameter: Parameter) -> torch.dtype:
    """The dtype of a parameter's gradient: float32 for 16-bit parameters with master weights."""
    return getattr(parameter, "grad_dtype", None) or parameter.dtype


def in_buckets(parameters: Sequence[Parameter]) -> list[list[Parameter]]:
    """Consecutive parameters in groups of at most BUCKET_ELEMENTS; a larger one is alone."""
    buckets: list[list[Parameter]] = []
    free = 0
    for parameter in parameters:
        if not buckets or parameter.numel() > free:
            buckets.append([])
            free = BUCKET_ELEMENTS
        buckets[-1].append(parameter)
        free -= parameter.numel()
    return buckets


def clip_gradients(parameters: Sequence[Parameter], max_norm: float) -> Tensor:
    """Clips the total gradient norm over whole and sharded parameters to `max_norm`; returns the norm before."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    whole = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    sharded = [gradient for gradient in gradients if isinstance(gradient, DTensor)]
    shards = [gradient.to_local() for gradient in sharded]
    norm = nn.utils.get_total_norm(whole)
    if shards:
        mesh = sharded[0].device_mesh
        # With HSDP, each shard is on several ranks.
        copies = mesh.size() // mesh.size(-1)
        norm = (norm**2 + all_sum(nn.utils.get_total_norm(shards) ** 2) / copies).sqrt()
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for gradient in (*whole, *shards):
        gradient.mul_(factor)
    return norm
