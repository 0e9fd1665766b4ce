"""Gradient checkpointing of transformers' layers: the backward pass recomputes each layer from its input.

A layer keeps its input instead of all its activations, for about a third more computation (Chen et al. 2016, "Training
Deep Nets with Sublinear Memory Cost"). Gradients do not change.

transformers' own switch checkpoints a layer only in training mode, in which some layers apply dropout, and recomputes
with the attention function that is set during the backward pass, which is not the one of packed rows (packing.py). So
the layers that it marks are wrapped here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from postrain.errors import ConfigError
from postrain.models.packing import use_attention
from postrain.models.parts import unwrapped


@contextmanager
def gradient_checkpointing(model: nn.Module, *, enabled: bool = True) -> Iterator[None]:
    """Checkpoints the layers in forward passes inside the block; the backward pass may follow outside."""
    layers = checkpointable_layers(model) if enabled else []
    previous = [vars(layer).get("forward") for layer in layers]
    contexts = partial(_contexts, unwrapped(model).config)
    for layer in layers:
        # An attribute of the instance hides the method of its class; FSDP's hooks stay outside the checkpoint.
        vars(layer)["forward"] = partial(checkpoint, layer.forward, use_reentrant=False, context_fn=contexts)
    try:
        yield
    finally:
        for layer, forward in zip(layers, previous, strict=True):
            if forward is None:
                del vars(layer)["forward"]
            else:
                vars(layer)["forward"] = forward


def checkpointable_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that transformers can checkpoint. Raises ConfigError for a model without any."""
    found: list[nn.Module] = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not found:
        raise ConfigError(
            f"method.gradient_checkpointing: transformers cannot checkpoint a {type(unwrapped(model)).__name__}; "
            "set it to false and lower method.micro_batch_tokens"
        )
    return found


def checkpoints(model: nn.Module, *, requested: bool) -> bool:
    """Whether to train with gradient checkpointing: if requested, or enabled in the model itself, which is undone.

    Raises ConfigError for a model that cannot be checkpointed.
    """
    switches = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False) is True]
    for module in switches:
        module.gradient_checkpointing = False  # pyright: ignore[reportArgumentType]
    enabled = requested or bool(switches)
    return enabled and bool(checkpointable_layers(model))


def _contexts(config: Any) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """The contexts of a layer's forward pass and of its recomputation, which uses the same attention function."""
    return nullcontext(), use_attention(config, config._attn_implementation)
