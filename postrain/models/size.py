"""The size of a model and of its activations, from its config alone: no weights are loaded."""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
from torch import nn

from postrain.models.loading import HEADS, model_config
from postrain.models.parts import parameter_count
from postrain.models.quiet import quiet
from postrain.models.sources import ResolvedModel
from postrain.types import Head


def skeleton(resolved: ResolvedModel, head: Head = "causal") -> nn.Module:
    """The model without storage, on the meta device: its modules, shapes and parameter names."""
    with quiet(), torch.device("meta"):
        return cast("nn.Module", HEADS[head][0].from_config(model_config(resolved, head), trust_remote_code=False))


@cache
def size_of(resolved: ResolvedModel) -> int:
    """The number of parameters of the model, without adapters."""
    return parameter_count(skeleton(resolved))


SHARE_OF_MEMORY = 0.25
"""Share of a CPU's memory for the activations of a micro-batch with the default number of tokens."""
SHARE_OF_FREE_MEMORY = 0.5
"""Share of a GPU's memory beside weights, gradients and optimizer for them; the rest is for logits and sampling."""
FEWEST_TOKENS, TOKENS_ON_GPU = 256, 2**15
KEPT, RECOMPUTED = 2.3, 0.6
"""Bytes of a micro-batch relative to `activation_bytes`, without and with gradient checkpointing, the allocator's gaps
included. Traces of 135M, 1B and 7B (memory_trace.py) have 1.1 to 1.9 and 0.05 to 0.5: float32 under autocast, and
gradients of activations."""


def activation_bytes(config: Any, dtype: torch.dtype) -> int:
    """Bytes that a forward pass keeps for each token.

    A layer with hidden size h and a gated feed-forward layer of size f keeps about 9h + 4f elements per token
    (Korthikanti et al. 2022, section 4.1: 17h = 9h + 2f without a gate and with f = 4h), without the attention matrix,
    which no kernel here keeps.
    """
    shape = config.get_text_config()
    inner = getattr(shape, "intermediate_size", None) or getattr(shape, "n_inner", None) or 4 * shape.hidden_size
    return shape.num_hidden_layers * (9 * shape.hidden_size + 4 * inner) * dtype.itemsize


def micro_batch_tokens(
    config: Any,
    *,
    on_gpu: bool,
    most: int,
    dtype: torch.dtype,
    memory: int,
    state_bytes: float = 0,
    devices: int = 1,
    checkpointing: bool = False,
) -> int:
    """The default number of tokens of a micro-batch on a device with `memory` bytes.

    On a CPU, which `devices` ranks share: `most`, halved until the activations fit SHARE_OF_MEMORY. On a GPU:
    TOKENS_ON_GPU, halved until they fit SHARE_OF_FREE_MEMORY of the bytes beside `state_bytes`, which this rank needs
    for weights, gradients, optimizer and reference.
    """
    per_token = activation_bytes(config, dtype)
    if not on_gpu:
        return halved(most, per_token, SHARE_OF_MEMORY * (memory // devices))
    per_token *= RECOMPUTED if checkpointing else KEPT
    return halved(TOKENS_ON_GPU, per_token, SHARE_OF_FREE_MEMORY * (memory - state_bytes))


def halved(tokens: int, per_token: float, budget: float) -> int:
    """`tokens`, halved until they fit the budget, but not below FEWEST_TOKENS."""
    while tokens > FEWEST_TOKENS and tokens * per_token > budget:
        tokens //= 2
    return tokens


def training_bytes(parameters: int, trained: int, dtype: torch.dtype) -> int:
    """Bytes of weights, float32 gradients, AdamW's moments, and float32 copies of 16-bit weights."""
    return parameters * dtype.itemsize + trained * (12 if dtype.itemsize == 4 else 16)
