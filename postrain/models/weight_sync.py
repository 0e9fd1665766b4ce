"""Weight sync to another engine: the policy's weights under transformers' names, one at a time, adapters merged.

The policy stays bit-identical: an adapter is merged into a copy of its layer, since unmerging does not restore the same
bits. Weights of a sharded model are gathered one at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from postrain.errors import ConfigError
from postrain.hardware.sharding import full_tensor, stored_parameters
from postrain.models.parts import unwrapped
from postrain.models.saved_adapter import REFERENCE

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
BASE = ".base_layer."
# PEFT's wrapper around modules of modules_to_save: the trained copy by adapter, and the original.
SAVED, ORIGINAL = ".modules_to_save.", ".original_module."
# PEFT's wrapper around embeddings with trainable tokens.
TOKENS = ".token_adapter"


@torch.no_grad()
def fingerprint(model: nn.Module) -> tuple[int, ...]:
    """The sum of the bit patterns of each trainable tensor: changes when an optimizer step changes the weights.

    Autograd's version counters would be free, but the fused AdamW does not increment them. Of a sharded model, each
    rank sums its own shards, which is the same whether weights are gathered or not.
    """
    stored = [values.detach() for values in dict.fromkeys(stored_parameters(model).values()) if values.requires_grad]
    trainable = [values.to_local() if isinstance(values, DTensor) else values for values in stored]
    sums = [values.contiguous().view(INTEGERS[values.element_size()]).sum(dtype=torch.int64) for values in trainable]
    # With its adapter disabled, or the reference adapter in its place, the policy is the initial policy.
    off = int(
        any(
            getattr(module, "_disable_adapters", False) or REFERENCE in (getattr(module, "_active_adapter", None) or ())
            for module in model.modules()
        )
    )
    return (off, *torch.stack(sums).tolist()) if sums else (off,)


@torch.no_grad()
def merged_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters by name, with adapters merged into them. All ranks must iterate over a sharded model together.

    Tied parameters have each of their names: an engine may keep a packed copy of each.
    """
    stored = stored_parameters(model)
    for name, parameter, layer in _sources(model):
        yield name, full_tensor(stored[parameter]) if layer is None else _merged(layer, stored)


def describe_weights(model: nn.Module) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
    """Names, dtypes and shapes of `merged_weights`, which gathers nothing."""
    stored = stored_parameters(model)
    return [(name, stored[parameter].dtype, tuple(stored[parameter].shape)) for name, parameter, _ in _sources(model)]


def _sources(model: nn.Module) -> Iterator[tuple[str, Tensor, Any]]:
    """Name, parameter, and the layer whose adapter is merged into it, if any."""
    inner = unwrapped(model)
    adapted: dict[str, Any] = {
        name: module for name, module in inner.named_modules(remove_duplicate=False) if hasattr(module, "base_layer")
    }
    for full_name, parameter in inner.named_parameters(remove_duplicate=False):
        check_transferable(full_name, parameter)
        if (name := _of_saved_module(full_name, inner)) is None:
            continue
        owner, base, leaf = name.partition(BASE)
        if base:
            merges = leaf == "weight" and not adapted[owner].disable_adapters
            yield f"{owner.removesuffix(TOKENS)}.{leaf}", parameter, adapted[owner] if merges else None
        elif not any(name.startswith(f"{layer}.") for layer in adapted):
            yield name, parameter, None


def _of_saved_module(name: str, inner: nn.Module) -> str | None:
    """The name of a parameter without PEFT's wrapper of a module in modules_to_save; None if it is not in use."""
    owner, wrapped, rest = name.partition(SAVED)
    if wrapped:
        adapter, _, leaf = rest.partition(".")
        layer: Any = inner.get_submodule(owner)
        return f"{owner}.{leaf}" if adapter in layer.active_adapters and not layer.disable_adapters else None
    owner, wrapped, leaf = name.partition(ORIGINAL)
    if not wrapped:
        return name
    return f"{owner}.{leaf}" if inner.get_submodule(owner).disable_adapters else None


def check_transferable(name: str, parameter: Tensor) -> None:
    """Raises ConfigError for a 4-bit parameter."""
    if hasattr(parameter, "quant_state"):
        raise ConfigError(
            f"rollout=vllm cannot load {name}, which adapter=qlora keeps in 4 bits; use adapter=lora or rollout=local"
        )


def _merged(layer: Any, stored: Mapping[Tensor, Tensor]) -> Tensor:
    """The merged weight of an adapted layer, in a copy with whole weights."""
    # A tied adapter refers to another layer, whose weights are not copied.
    memo: dict[int, Any] = {id(weight): weight for weight in stored}
    memo |= {
        id(weight): nn.Parameter(full_tensor(stored[weight]).clone(), requires_grad=False)
        for weight in layer.parameters()
    }
    merged = copy.deepcopy(layer, memo)
    merged.merge()
    return merged.base_layer.weight.detach()
