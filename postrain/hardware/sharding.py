"""Sharded models (FSDP2, PyTorch's fully_shard): weights, gradients and optimizer states are divided over the ranks.

A transformer block is gathered for its own computation. The other weights (embeddings, head, last norm) are gathered
together and stay until the next backward pass, because scoring and sampling call trunk and head separately.

Ranks gather together, so they must call a sharded model equally often. They do where gradients are computed (see
`UpdateLoop.dummy_passes`). Elsewhere, ranks sample different numbers of tokens and score different numbers of
micro-batches; there, blocks stay gathered after their first forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

T = TypeVar("T")


def device_mesh(device: str, ranks: int, shards: int) -> DeviceMesh:
    """The mesh of all ranks: of one dimension, or copies × shards (HSDP) if there are fewer shards than ranks."""
    return _device_mesh(dist.group.WORLD, device, (ranks,) if shards == ranks else (ranks // shards, shards))


@lru_cache(1)
def _device_mesh(world: Any, device: str, shape: tuple[int, ...]) -> DeviceMesh:
    """A mesh of the process group `world`; each new one has process groups of its own."""
    return init_device_mesh(device, shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])


def shard(model: nn.Module, mesh: DeviceMesh, compute_dtype: torch.dtype | None = None) -> None:
    """Shards all weights of a model over the last dimension of `mesh`, each transformer block as a unit.

    With `compute_dtype`, weights are gathered in that dtype and gradients are summed in float32; the shards and the
    optimizer keep the dtype of the weights. A sharded model stays as it is.
    """
    if isinstance(model, FSDPModule):
        return
    # Autocast casts the inputs of blocks.
    precision = MixedPrecisionPolicy(compute_dtype, compute_dtype and torch.float32, cast_forward_inputs=False)
    blocks = transformer_blocks(model)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=precision, reshard_after_forward=False)
    fully_shard(model, mesh=mesh, mp_policy=precision)
    for unit in (*blocks, model):
        # Gradients are the sum over ranks, not their mean.
        cast("FSDPModule", unit).set_gradient_divide_factor(1.0)
        cast("FSDPModule", unit).set_force_sum_reduction_for_comms(True)
    sharded: Any = model
    # Gathered weights take the place of the shards in the modules.
    sharded.shards = dict(model.named_parameters(remove_duplicate=False))
    sharded.call_gathered = lambda function: function()
    register_fsdp_forward_method(model, "call_gathered")


def allocate(model: nn.Module) -> None:
    """Allocates the shards of a model that was sharded on the meta device; their values are arbitrary."""
    aliases: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(parameter, []).append(name)
    device = next(iter(aliases)).device_mesh.device_type  # pyright: ignore[reportAttributeAccessIssue]
    model._apply(lambda tensor: torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device))
    for first, *others in aliases.values():
        # Tied weights became several.
        for name in others:
            module, _, own = name.rpartition(".")
            setattr(model.get_submodule(module), own, model.get_parameter(first))
    cast("Any", model).shards = dict(model.named_parameters(remove_duplicate=False))


def local_rows(weight: DTensor) -> tuple[int, int]:
    """The first row of this rank's shard of a weight, and the first row after it."""
    ranks = weight.device_mesh.size(-1)
    rows, rank = -(-weight.shape[0] // ranks), weight.device_mesh.get_local_rank(weight.device_mesh.ndim - 1)
    return min(rank * rows, weight.shape[0]), min((rank + 1) * rows, weight.shape[0])


def transformer_blocks(model: nn.Module) -> list[nn.Module]:
    """The entries of the outermost module lists; lists inside a block, as of experts, belong to the block."""
    found: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and module not in inside:
            found.extend(module)
            inside.update(each for block in module for each in block.modules())
    return found


def call_gathered(model: Any, function: Callable[[], T]) -> T:
    """function(), with the weights outside blocks gathered; just function() if the model is not sharded."""
    if not isinstance(model, FSDPModule):
        return function()
    found: list[T] = []
    # Without an output: PyTorch hooks the outputs of a forward method, and warns where they are views.
    model.call_gathered(lambda: found.append(function()))  # pyright: ignore[reportAttributeAccessIssue]
    return found[0]


@contextmanager
def blocks_freed(models: Sequence[nn.Module]) -> Iterator[None]:
    """Inside the block, gathered blocks are freed after each forward pass and gathered again in the backward pass.

    Every rank must call the models equally often there.
    """
    blocks = [block for model in models for block in model.modules() if isinstance(block, FSDPModule)]
    blocks = [block for block in blocks if block not in models]
    for block in blocks:
        block.reshard()
        block.set_reshard_after_forward(True, recurse=False)
    try:
        yield
    finally:
        for block in blocks:
            block.set_reshard_after_forward(False, recurse=False)


def sum_over_copies(models: Sequence[nn.Module], *, enabled: bool) -> None:
    """Whether backward passes sum gradients over the copies of the model (HSDP), not over its shards only.

    Sums over shards are added up until a pass for which it is enabled.
    """
    for model in models:
        if isinstance(model, FSDPModule):
            model.set_requires_all_reduce(enabled)


def stored_parameters(model: nn.Module) -> dict[Tensor, Tensor]:
    """The shard (DTensor) of each current parameter of a sharded model; of any other model the parameter itself.

    The shards are what the optimizer steps change. Gathered weights, which are parameters until they are freed, are
    copies in the compute dtype, and the ranks need not have gathered the same ones.
    """
    # Module's annotations do not have attributes that are not modules or tensors.
    shards = cast("dict[str, Tensor]", getattr(model, "shards", {})) if isinstance(model, FSDPModule) else {}
    return {weight: shards.get(name, weight) for name, weight in model.named_parameters(remove_duplicate=False)}


def sharded_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters by name, after gathered weights are freed."""
    for each in module.modules():
        if isinstance(each, FSDPModule):
            each.reshard()
    return dict(module.named_parameters())


def local_shard(value: Tensor) -> Tensor:
    """This rank's shard of a DTensor; other tensors unchanged."""
    return value.to_local() if isinstance(value, DTensor) else value


def load_state(model: nn.Module, state: dict[str, Any]) -> None:
    """Loads a state dict of whole tensors, or of a sharded model also of its shards."""
    if not isinstance(model, FSDPModule):
        model.load_state_dict(state)
        return
    whole = not any(isinstance(value, DTensor) for value in state.values())
    sharded_parameters(model)  # frees gathered weights
    set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=whole))


def full_tensor(weight: Tensor) -> Tensor:
    """The detached weight; gathered if it is a shard, which all ranks must do together."""
    weight = weight.detach()
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def full_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The full state dict of a sharded model on the first rank, {} on the others; all ranks must call it."""
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return cast("dict[str, Tensor]", state)
