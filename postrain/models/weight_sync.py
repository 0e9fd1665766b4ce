"""Weight sync to another engine: the policy's weights under transformers' names, one at a time, adapters merged.

The policy stays bit-identical: unmerging an adapter does not restore the same bits, so each base weight is restored
from a copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from postrain.errors import ConfigError
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

    Autograd's version counters would be free, but the fused AdamW does not increment them.
    """
    trainable = [parameter.detach() for parameter in model.parameters() if parameter.requires_grad]
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
    """All parameters by name, with adapters merged into them.

    Tied parameters have each of their names: an engine may keep a packed copy of each.
    """
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
            yield (
                f"{owner.removesuffix(TOKENS)}.{leaf}",
                _merged(adapted[owner])
                if leaf == "weight" and not adapted[owner].disable_adapters
                else parameter.detach(),
            )
        elif not any(name.startswith(f"{layer}.") for layer in adapted):
            yield name, parameter.detach()


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
    """Raises ConfigError for a sharded or a 4-bit parameter."""
    if isinstance(parameter, DTensor):
        raise ConfigError(
            f"rollout=vllm needs whole weights, and trainer=fsdp shards {name}; use trainer=ddp or rollout=local"
        )
    if hasattr(parameter, "quant_state"):
        raise ConfigError(
            f"rollout=vllm cannot load {name}, which adapter=qlora keeps in 4 bits; use adapter=lora or rollout=local"
        )


def _merged(layer: Any) -> Tensor:
    """The merged weight of an adapted layer; the layer itself stays bit-identical."""
    weight = layer.base_layer.weight
    before = weight.detach().clone()
    layer.merge()
    found = weight.detach().clone()
    layer.unmerge()
    weight.copy_(before)
    return found
