"""The parts of a Hugging Face model: the trunk (hidden states), the head (logits) and a value head; copies and digests.

Training scores only some positions, so it runs trunk and head separately; `parts_agree` checks that they reproduce the
model.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.functional import linear
from transformers import PreTrainedModel

from postrain.hardware.sharding import call_gathered

RELATIVE_TOLERANCE, ROUNDED = {torch.float32: 1e-4, torch.float64: 1e-8}, 3e-2
Model = TypeVar("Model", bound=nn.Module)


@contextmanager
def comparing(model: nn.Module) -> Iterator[None]:
    """Inside the block, two computations of a model agree within `tolerance`: no autocast and no TF32, whose rounding
    depends on the kernels. A sharded model keeps autocast, which casts the inputs of its blocks."""
    device, before = unwrapped(model).device.type, torch.get_float32_matmul_precision()
    sharded = any(isinstance(module, FSDPModule) for module in model.modules())
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device, enabled=sharded and torch.is_autocast_enabled(device)):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def tolerance(values: Tensor) -> float:
    """Largest difference of two computations of these values, relative to the largest of them."""
    rounded = torch.is_autocast_enabled(values.device.type)
    return ROUNDED if rounded else RELATIVE_TOLERANCE.get(values.dtype, ROUNDED)


def unwrapped(model: Any) -> PreTrainedModel:
    """The Hugging Face model inside a PEFT wrapper, adapter layers included, or the model itself."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    assert isinstance(inner, PreTrainedModel), f"{type(model).__name__} is not a Hugging Face model"
    return inner


def trunk(model: nn.Module) -> nn.Module:
    """The module that maps ids to `last_hidden_state`, including the final normalization."""
    return unwrapped(model).base_model


def trunk_output(model: nn.Module, **inputs: Any) -> Any:
    """The trunk's output. The head of a sharded model can be used afterwards, until the next backward pass."""
    inner = trunk(model)
    return inner(**inputs) if inner is model else call_gathered(model, lambda: inner(**inputs))


def logits_of(model: nn.Module, states: Tensor) -> Tensor:
    """The model's output for hidden states [..., D]: vocabulary logits [..., V] or a score [..., 1]."""
    inner: Any = unwrapped(model)
    if hasattr(inner, "score"):
        return inner.score(states)
    config = inner.config.get_text_config()
    logits = inner.get_output_embeddings()(states)
    # Granite divides its logits, Cohere and Falcon-H1 multiply them, Gemma soft-caps them.
    if divisor := getattr(config, "logits_scaling", None):
        logits = logits / divisor
    for name in ("logit_scale", "lm_head_multiplier"):
        # A product with 1 would read and write all logits, and again in the backward pass.
        if (factor := getattr(config, name, 1.0)) != 1:
            logits = logits * factor
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = cap * torch.tanh(logits / cap)
    return logits


def upcast(values: Tensor) -> Tensor:
    """The values in at least float32: bfloat16 is too coarse for sums over a vocabulary."""
    return values if values.dtype == torch.float64 else values.float()


@torch.no_grad()
def probe(model: nn.Module) -> Tensor:
    """The model's logits on a fixed row of eight tokens, float32 [8, V]; for a scalar model the score, [1, 1]."""
    return model(input_ids=probe_ids(model)[None], use_cache=False).logits[0].float().reshape(-1, model_width(model))


@torch.no_grad()
def parts_agree(model: nn.Module) -> bool:
    """Whether trunk and `logits_of` reproduce the model's output on eight tokens; expects eval mode."""
    states_1LD = trunk_output(model, input_ids=probe_ids(model)[None], use_cache=False).last_hidden_state
    whole = probe(model)
    mine = logits_of(model, states_1LD)[0].float()[-len(whole) :]
    largest = whole.abs().max().clamp(min=1)
    return mine.shape == whole.shape and bool((mine - whole).abs().max() <= tolerance(states_1LD) * largest)


def model_width(model: nn.Module) -> int:
    """Width of the model's output: V, or 1 with a scalar head."""
    inner: Any = unwrapped(model)
    return inner.num_labels if hasattr(inner, "score") else inner.config.get_text_config().vocab_size


def probe_ids(model: nn.Module, count: int = 8) -> Tensor:
    """Ids for a test of the model, [count], without the pad token, which a scalar model would skip."""
    inner = unwrapped(model)
    config = inner.config.get_text_config()
    pad = -1 if config.pad_token_id is None else config.pad_token_id
    ids_L = torch.arange(1, count + 1) * 7919 % config.vocab_size
    return torch.where(ids_L == pad, (pad + 1) % config.vocab_size, ids_L).to(inner.device)


class ValueHead(nn.Module):
    """A linear map from a hidden state to a scalar, initialized to 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.output = nn.Linear(width, 1)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, states: Tensor) -> Tensor:
        """[..., D] → [..., 1] in at least float32 for any weight dtype: bfloat16 is too coarse for returns."""
        with torch.autocast(states.device.type, enabled=False):
            return linear(upcast(states), upcast(self.output.weight), upcast(self.output.bias))


def parameter_count(model: nn.Module) -> int:
    """The number of parameters of the Hugging Face model, without adapters; each of a 4-bit pair counts."""
    return unwrapped(model).num_parameters() - sum(
        part.numel() for name, part in unwrapped(model).named_parameters() if "lora_" in name
    )


def weights_digest(model: nn.Module) -> str:
    """A hash of the names, dtypes, shapes and values of all parameters and buffers."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def size_in_bytes(model: nn.Module) -> int:
    """Memory of all parameters."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def frozen_copy(model: Model) -> Model:
    """A copy of the model in eval mode, with gradients disabled."""
    return copy.deepcopy(model).eval().requires_grad_(False)
