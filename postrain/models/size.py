"""The size of a model and of its activations, from its config alone: no weights are loaded."""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
from torch import nn

from postrain.models.loading import HEADS, Head, model_config
from postrain.models.parts import parameter_count
from postrain.models.quiet import quiet
from postrain.models.sources import ResolvedModel


def skeleton(resolved: ResolvedModel, head: Head = "causal") -> nn.Module:
    """The model without storage, on the meta device: its modules, shapes and parameter names."""
    with quiet(), torch.device("meta"):
        return cast("nn.Module", HEADS[head][0].from_config(model_config(resolved, head), trust_remote_code=False))


@cache
def size_of(resolved: ResolvedModel) -> int:
    """The number of parameters of the model, without adapters."""
    return parameter_count(skeleton(resolved))


SHARE_OF_MEMORY = 0.25
"""Share of a device's memory for the activations of a micro-batch with the default number of tokens."""
FEWEST_TOKENS = 256


def micro_batch_tokens(config: Any, *, most: int, dtype: torch.dtype, memory: int) -> int:
    """The default number of tokens of a micro-batch: `most`, halved until the activations fit SHARE_OF_MEMORY.

    A layer with hidden size h and a gated feed-forward layer of size f keeps about 9h + 4f elements per token
    (Korthikanti et al. 2022, section 4.1: 17h = 9h + 2f without a gate and with f = 4h), without the attention matrix,
    which no kernel here keeps. `memory` is in bytes.
    """
    shape = config.get_text_config()
    inner = getattr(shape, "intermediate_size", None) or getattr(shape, "n_inner", None) or 4 * shape.hidden_size
    per_token = shape.num_hidden_layers * (9 * shape.hidden_size + 4 * inner) * dtype.itemsize
    while most > FEWEST_TOKENS and most * per_token > SHARE_OF_MEMORY * memory:
        most //= 2
    return most
