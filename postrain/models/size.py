"""The size of a model, from its config alone: no weights are loaded."""

from __future__ import annotations

from functools import cache
from typing import cast

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
