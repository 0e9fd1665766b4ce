"""Weights of linear layers, copied once per generation: layers with the same input concatenated, adapters merged, in
the dtype and memory layout in which few rows are multiplied fastest.

Not supported: layers other than plain linear ones (quantised, DoRA). `merged` raises UnsupportedLayer for them, and the
model's forward pass is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from postrain.processor import ONEDNN, ROWS, int8_linear, pack_int8, supports_packed_weights


class UnsupportedLayer(Exception):
    """The weights of a layer cannot be read as a plain matrix."""


@dataclass(frozen=True)
class Activation:
    """An elementwise activation; oneDNN fuses it into the product by `name` and `algorithm`."""

    name: str
    algorithm: str
    function: nn.Module


class Weights(Protocol):
    """Linear layers with the same input as one layer: x [B, in] → [B, out]."""

    def __call__(self, x: Tensor, activation: Activation | None = None) -> Tensor:
        """activation(x · Wᵀ + b)."""
        ...

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """x · Wᵀ + b + other."""
        ...

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """(x · Wᵀ + b) · other."""
        ...


def weights_of(layers: Sequence[nn.Module], dtype: torch.dtype) -> Weights:
    """The weights of linear layers with the same input. Raises UnsupportedLayer."""
    pairs = [merged(layer) for layer in layers]
    biases = [bias for _, bias in pairs if bias is not None]
    if biases and len(biases) < len(pairs):
        raise UnsupportedLayer
    plain = plain_dtype(dtype)
    weights = [weight.to(plain) for weight, _ in pairs]
    weight = weights[0] if len(weights) == 1 else torch.cat(weights)
    bias = torch.cat(biases).to(plain) if biases else None
    return Int8Weights(weight, bias) if dtype is torch.int8 else FloatWeights(weight, bias)


def plain_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of everything but the products: float32 for int8."""
    return torch.float32 if dtype is torch.int8 else dtype


class Int8Weights:
    """Weights rounded to 255 values per output, and inputs to 255 values per product: three times as fast in a decode
    step as float32."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.packed = pack_int8(weight, bias)

    def __call__(self, x: Tensor, activation: Activation | None = None) -> Tensor:
        output = int8_linear(x, self.packed)
        return activation.function(output) if activation else output

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        return int8_linear(x, self.packed).add_(other)

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        return int8_linear(x, self.packed).mul_(other)


class FloatWeights:
    """Weights in the dtype of the input."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.bias = bias
        self.packed = weight.device.type == "cpu" and supports_packed_weights(weight.dtype)
        # oneDNN's packed layout: twice as fast with eight rows; a few tokens repay the copy.
        self.weight = ONEDNN._reorder_linear_weight(weight.contiguous(), ROWS) if self.packed else weight

    def __call__(self, x: Tensor, activation: Activation | None = None) -> Tensor:
        if self.packed:
            name, algorithm = (activation.name, activation.algorithm) if activation else ("none", "")
            return ONEDNN._linear_pointwise(x, self.weight, self.bias, name, [], algorithm)
        output = F.linear(x, self.weight, self.bias)
        return activation.function(output) if activation else output

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        if self.packed:
            return ONEDNN._linear_pointwise.binary(x, other, self.weight, self.bias, "add")
        return F.linear(x, self.weight, self.bias) + other

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        if self.packed:
            return ONEDNN._linear_pointwise.binary(x, other, self.weight, self.bias, "mul")
        return F.linear(x, self.weight, self.bias) * other


def merged(layer: Any) -> tuple[Tensor, Tensor | None]:
    """Weight [out, in] and bias of a linear layer, with active LoRA adapters merged. Raises UnsupportedLayer."""
    if type(layer) is nn.Linear:
        return layer.weight.detach(), _detached(layer.bias)
    if type(layer) is Conv1D:
        return layer.weight.detach().t(), _detached(layer.bias)
    if not hasattr(layer, "lora_A"):
        raise UnsupportedLayer
    base = layer.get_base_layer()
    weight, bias = merged(base)
    if layer.disable_adapters or layer.merged:
        return weight, bias
    for name in layer.active_adapters:
        if name not in layer.lora_A:
            continue
        if name in layer.lora_variant or layer.lora_bias[name]:
            raise UnsupportedLayer
        delta = layer.get_delta_weight(name).detach()
        weight = weight + (delta.t() if type(base) is Conv1D else delta).to(weight.dtype)
    return weight, bias


def _detached(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach()
