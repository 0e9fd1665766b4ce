"""A policy's weights as another engine wants them: under the names plain transformers gives them, adapters merged in,
one tensor at a time. The policy itself stays as it is, to the bit: taking an adapter off again after merging does not
give back the same numbers, so each base weight is put back from a copy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from postrain.errors import ConfigError
from postrain.models.parts import unwrapped

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
BASE = ".base_layer."
# Around embeddings of which some tokens learn.
TOKENS = ".token_adapter"


@torch.no_grad()
def fingerprint(model: nn.Module) -> tuple[int, ...]:
    """A number for each tensor that learns, the sum of its bit patterns: equal as long as nothing was learned.

    Autograd's version counters would cost nothing, but the fused AdamW does not move them.
    """
    learns = [parameter.detach() for parameter in model.parameters() if parameter.requires_grad]
    sums = [values.contiguous().view(INTEGERS[values.element_size()]).sum(dtype=torch.int64) for values in learns]
    # A policy with its adapter off is its start.
    off = int(any(getattr(module, "_disable_adapters", False) for module in model.modules()))
    return (off, *torch.stack(sums).tolist()) if sums else (off,)


@torch.no_grad()
def merged_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter by name, an adapter's additions inside those they belong to."""
    inner = unwrapped(model)
    adapted: dict[str, Any] = {name: module for name, module in inner.named_modules() if hasattr(module, "base_layer")}
    for name, parameter in inner.named_parameters():
        check_transferable(name, parameter)
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


def check_transferable(name: str, parameter: Tensor) -> None:
    """Only whole tensors of numbers can be handed over."""
    if isinstance(parameter, DTensor):
        raise ConfigError(
            f"rollout=vllm is handed whole weights, and trainer=fsdp keeps {name} in shards; use trainer=ddp, or "
            "rollout=local"
        )
    if hasattr(parameter, "quant_state"):
        raise ConfigError(
            f"rollout=vllm cannot be handed {name}, which adapter=qlora keeps in 4 bits; use adapter=lora, or "
            "rollout=local"
        )


def _merged(layer: Any) -> Tensor:
    """The weight of an adapted layer with its additions; the layer itself is left as it was."""
    weight = layer.base_layer.weight
    before = weight.detach().clone()
    layer.merge()
    found = weight.detach().clone()
    layer.unmerge()
    weight.copy_(before)
    return found
