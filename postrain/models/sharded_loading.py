"""Loads a sharded model without the whole: modules on the meta device, and the slices of this rank from the files.

`load` (loading.py) reads everything else: GGUF and .bin files, adapters, resized vocabularies, quantized weights, and
checkpoints whose names or shapes transformers converts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter

from postrain.errors import as_config_error
from postrain.hardware.sharding import allocate, blocks_freed, local_rows, sharded_parameters
from postrain.models.directory import weight_files
from postrain.models.loading import HEADS, SCALAR_HEAD, check_parts, fuse_gelu, init_scalar_head, model_config
from postrain.models.quiet import quiet
from postrain.models.sources import ResolvedModel
from postrain.seeds import seeded
from postrain.types import Head


def load_sharded(
    resolved: ResolvedModel, head: Head, *, dtype: torch.dtype, shard: Callable[[nn.Module], object]
) -> PreTrainedModel | None:
    """The model in eval mode after `shard`, with this rank's shards only; None if its files have to be read whole.

    All ranks call it together. Weights and buffers equal those of `load`.
    """
    if resolved.adapters or resolved.resize or resolved.from_scratch or not (files := weight_map(resolved.directory)):
        return None
    model = skeleton(resolved, head, dtype)
    missing = dict(model.named_parameters()).keys() - files.keys()
    new_head = head == "scalar" and missing == {f"{SCALAR_HEAD}.weight"}
    if (missing and not new_head) or converts(model):
        return None
    with as_config_error(f"the model in {resolved.directory} cannot be read"), ExitStack() as stack:
        opened = {
            path: stack.enter_context(safe_open(path, framework="pt"))  # pyright: ignore[reportArgumentType]
            for path in sorted(set(files.values()))
        }
        slices = {name: opened[path].get_slice(name) for name, path in files.items() if name in model.state_dict()}
        if any(each.get_shape() != list(model.state_dict()[name].shape) for name, each in slices.items()):
            return None
        shard(model)
        allocate(model)
        fill(model, slices)
    if new_head:
        fill_scalar_head(model)
    model.name_or_path = resolved.loads_as or ""
    with blocks_freed([model]):
        check_parts(model, resolved.name)
    # The check has gathered what is outside blocks.
    sharded_parameters(model)
    return model


def weight_map(directory: Path) -> dict[str, Path]:
    """The safetensors file of each weight, by its name; empty without such files."""
    found: dict[str, Path] = {}
    for path in (directory / name for name in weight_files(directory)):
        with as_config_error(f"the model in {directory} cannot be read"), safe_open(path, framework="pt") as file:  # pyright: ignore[reportArgumentType]
            found |= dict.fromkeys(file.keys(), path)
    return found


def skeleton(resolved: ResolvedModel, head: Head, dtype: torch.dtype) -> Any:
    """The model with parameters on the meta device and computed buffers, such as rotary frequencies, on the CPU."""
    from accelerate import init_empty_weights  # noqa: PLC0415 - start-up time

    with quiet(), seeded("model"), init_empty_weights(include_buffers=False):
        model = HEADS[head][0].from_config(model_config(resolved, head), dtype=dtype, trust_remote_code=False)
    # accelerate has made a parameter of its own for each of the tied weights.
    model.tie_weights()
    fuse_gelu(model)
    return model.eval()


def converts(model: Any) -> bool:
    """Whether transformers changes weights while it reads them: merges them or keeps some in float32."""
    kept = [getattr(model, name, None) for name in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")]
    return any(kept) or any(isinstance(each, WeightConverter) for each in get_model_conversion_mapping(model))


@torch.no_grad()
def fill(model: nn.Module, slices: Mapping[str, Any]) -> None:
    """Copies the slices of this rank into its shards, in their dtype, and saved buffers."""
    for name, parameter in model.named_parameters():
        if name in slices and isinstance(parameter, DTensor):
            first, last = local_rows(parameter)
            parameter.to_local().copy_(slices[name][first:last])
    for name, buffer in model.named_buffers():
        if name in slices:
            buffer.copy_(slices[name][:])


@torch.no_grad()
def fill_scalar_head(model: Any) -> None:
    """Copies this rank's shard of a new scalar head."""
    weight = getattr(model, SCALAR_HEAD).weight
    whole = nn.Module()
    whole.score = nn.Linear(weight.shape[1], 1, bias=False, dtype=weight.dtype)
    with seeded("model"):  # as in `load`
        init_scalar_head(whole)
    first, last = local_rows(weight)
    weight.to_local().copy_(whole.score.weight[first:last])
