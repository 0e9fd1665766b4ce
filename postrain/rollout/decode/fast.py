"""Fast forward pass of one token per row, for the GPT-2 and Llama families (Llama, Mistral, Qwen2/3) and Gemma 3.

Its logits equal the model's up to rounding, which backend.py checks before use. A decoder copies the weights when it is
constructed, so it is valid for one generation. Not supported: prompts, sliding windows except Gemma's, and other
architectures, which use the model's forward pass.

Axes: B rows, D model width, H key-value heads, G query heads per key-value head, K width of a head, L positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from postrain.models.attention_kinds import windows
from postrain.rollout.decode.cache import SlotCache, SlotLayer, shared_attention
from postrain.rollout.decode.weights import Activation, UnsupportedLayer, Weights, plain_dtype, weights_of

# Activations: their names in transformers' configs → name and algorithm in oneDNN.
ACTIVATIONS = {
    "gelu_new": ("gelu", "tanh"),
    "gelu_pytorch_tanh": ("gelu", "tanh"),
    "gelu": ("gelu", "none"),
    "silu": ("swish", ""),
    "swish": ("swish", ""),
    "relu": ("relu", ""),
}


@dataclass(frozen=True)
class Norm:
    """LayerNorm; RMSNorm without a bias."""

    weight: Tensor
    bias: Tensor | None
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        if self.bias is None:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True)
class Block:
    """The weights of one transformer block."""

    before_attention: Norm
    qkv: Weights
    query_norm: Norm | None
    key_norm: Norm | None
    scale: float
    out: Weights
    before_mlp: Norm
    gate: Weights | None
    up: Weights
    down: Weights
    after_attention: Norm | None = None
    """Normalizes the output of attention before the residual connection; None in most architectures."""
    after_mlp: Norm | None = None
    layer_type: str = ""
    """Key of its mask and rotary embedding."""


@dataclass(frozen=True)
class Decoder:
    """A decoder's weights."""

    embed: Callable[[Tensor, Tensor], Tensor]
    """Ids and positions [B] → [B, D]."""
    rotary: Callable[..., tuple[Tensor, Tensor]] | None
    """States, positions [B, 1], and the layer type if there are several → cosines and sines, [B, 1, K]."""
    blocks: tuple[Block, ...]
    activation: Activation
    shape: tuple[int, int, int]
    """Number of query heads, number of key-value heads, width of a head."""
    norm: Norm
    head: Weights
    windows: Mapping[str, int | None] = field(default_factory=lambda: {"": None})
    """The sliding window of each layer type; None attends to all tokens."""

    def __call__(self, tokens_B: Tensor, cache: SlotCache) -> Tensor:
        """Logits of the next token, [B, V]. Adds `tokens_B` to the cache, whose cursor has advanced already."""
        positions_B = cache.cursor.position_B
        x_BD = self.embed(tokens_B, positions_B)
        rotary = {
            kind: signed_rotary(*self.rotary(x_BD, positions_B[:, None], *([kind] if kind else [])))
            if self.rotary
            else None
            for kind in self.windows
        }
        masks = {kind: additive(cache.attention_mask(window), x_BD.dtype) for kind, window in self.windows.items()}
        for block, layer in zip(self.blocks, cache.slot_layers, strict=True):
            x_BD = self.attend(block, x_BD, rotary[block.layer_type], masks[block.layer_type], layer)
            states_BD = block.before_mlp(x_BD)
            if block.gate is None:
                inner = block.up(states_BD, self.activation)
            else:
                inner = block.up.times(states_BD, block.gate(states_BD, self.activation))
            x_BD = residual(block.down, inner, x_BD, block.after_mlp)
        return self.head(self.norm(x_BD))

    def attend(
        self, block: Block, x_BD: Tensor, rotary: tuple[Tensor, Tensor] | None, mask_B11L: Tensor, layer: SlotLayer
    ) -> Tensor:
        """Attention with its residual connection, [B, D]."""
        queries, heads, width = self.shape
        qkv = block.qkv(block.before_attention(x_BD)).unflatten(-1, (queries + 2 * heads, width))
        qk, values_BHK = qkv.split((queries + heads, heads), dim=1)
        if block.query_norm is not None and block.key_norm is not None:
            qk = torch.cat([block.query_norm(qk[:, :queries]), block.key_norm(qk[:, queries:])], dim=1)
        if rotary is not None:
            cosines, sines = rotary
            qk = (qk * cosines).addcmul_(qk.unflatten(-1, (2, -1)).flip(-2).flatten(-2), sines)
        query_BHGK = qk[:, :queries].unflatten(1, (heads, -1))
        layer.write(qk[:, queries:], values_BHK)
        if groups := layer.cursor.groups:
            prompt, completion = layer.read_prompts(groups), layer.read_completions()
            output = shared_attention(query_BHGK, groups, prompt, completion, mask_B11L, block.scale)
        else:
            # Grouped-query attention: query heads take the place of the sequence axis, so keys need no repetition.
            output = F.scaled_dot_product_attention(query_BHGK, *layer.read(), attn_mask=mask_B11L, scale=block.scale)
        return residual(block.out, output.flatten(1), x_BD, block.after_attention)


def residual(weights: Weights, inner: Tensor, x_BD: Tensor, norm: Norm | None) -> Tensor:
    """x + norm(inner · Wᵀ + b), [B, D]."""
    return weights.plus(inner, x_BD) if norm is None else x_BD + norm(weights(inner))


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where the mask is True, −∞ elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)


def signed_rotary(cosines: Tensor, sines: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary embeddings, the first half of the sines negated, [B, 1, K]: x · cos + swap(x) · sin,
    where swap exchanges the halves of x, is the rotation."""
    half = sines.shape[-1] // 2
    return cosines, torch.cat([-sines[..., :half], sines[..., half:]], dim=-1)


def decoder_of(model: Any, dtype: torch.dtype) -> Decoder:
    """The fast decoder of a Hugging Face model. Raises UnsupportedLayer if a layer's weights cannot be read."""
    return READERS[model.config.model_type](model, dtype)


def is_supported(model: Any, *, windowed: bool) -> bool:
    """Whether the architecture has a fast decoder; with `windowed`, one that applies sliding windows."""
    return model.config.model_type in (WITH_WINDOWS if windowed else READERS)


def read_llama(model: Any, dtype: torch.dtype) -> Decoder:
    inner, config, plain = model.model, model.config, plain_dtype(dtype)
    tokens = plain_embedding(inner.embed_tokens)

    def norm(layer: Any) -> Norm:
        return Norm(layer.weight.detach().to(plain), None, layer.variance_epsilon)

    def block(layer: Any) -> Block:
        attention, mlp = layer.self_attn, layer.mlp
        return Block(
            before_attention=norm(layer.input_layernorm),
            qkv=weights_of([attention.q_proj, attention.k_proj, attention.v_proj], dtype),
            query_norm=norm(attention.q_norm) if hasattr(attention, "q_norm") else None,
            key_norm=norm(attention.k_norm) if hasattr(attention, "k_norm") else None,
            scale=attention.scaling,
            out=weights_of([attention.o_proj], dtype),
            before_mlp=norm(layer.post_attention_layernorm),
            gate=weights_of([mlp.gate_proj], dtype),
            up=weights_of([mlp.up_proj], dtype),
            down=weights_of([mlp.down_proj], dtype),
        )

    heads, width = config.num_key_value_heads, inner.layers[0].self_attn.head_dim
    return Decoder(
        embed=lambda tokens_B, at_B: tokens(tokens_B).to(plain),
        rotary=inner.rotary_emb,
        blocks=tuple(map(block, inner.layers)),
        activation=activation_of(config.hidden_act, inner.layers[0].mlp.act_fn),
        shape=(config.num_attention_heads, heads, width),
        norm=norm(inner.norm),
        head=weights_of([model.lm_head], dtype),
    )


def read_gemma3(model: Any, dtype: torch.dtype) -> Decoder:
    """Norms around attention and MLP, with weights 1 + w; a rotary embedding for each layer type."""
    inner, config, plain = model.model, model.config, plain_dtype(dtype)
    tokens = plain_embedding(inner.embed_tokens)

    def norm(layer: Any) -> Norm:
        return Norm((1 + layer.weight.detach().float()).to(plain), None, layer.eps)

    def block(layer: Any) -> Block:
        attention, mlp = layer.self_attn, layer.mlp
        return Block(
            before_attention=norm(layer.input_layernorm),
            qkv=weights_of([attention.q_proj, attention.k_proj, attention.v_proj], dtype),
            query_norm=norm(attention.q_norm),
            key_norm=norm(attention.k_norm),
            scale=attention.scaling,
            out=weights_of([attention.o_proj], dtype),
            before_mlp=norm(layer.pre_feedforward_layernorm),
            gate=weights_of([mlp.gate_proj], dtype),
            up=weights_of([mlp.up_proj], dtype),
            down=weights_of([mlp.down_proj], dtype),
            after_attention=norm(layer.post_attention_layernorm),
            after_mlp=norm(layer.post_feedforward_layernorm),
            layer_type=attention.layer_type,
        )

    return Decoder(
        embed=lambda tokens_B, at_B: tokens(tokens_B).to(plain),
        rotary=inner.rotary_emb,
        blocks=tuple(map(block, inner.layers)),
        activation=activation_of(config.hidden_activation, inner.layers[0].mlp.act_fn),
        shape=(config.num_attention_heads, config.num_key_value_heads, config.head_dim),
        norm=norm(inner.norm),
        head=weights_of([model.lm_head], dtype),
        windows=windows(config),
    )


def read_gpt2(model: Any, dtype: torch.dtype) -> Decoder:
    inner, config, plain = model.transformer, model.config, plain_dtype(dtype)
    tokens, positions = plain_embedding(inner.wte), plain_embedding(inner.wpe)

    def norm(layer: Any) -> Norm:
        return Norm(layer.weight.detach().to(plain), layer.bias.detach().to(plain), layer.eps)

    def block(layer: Any) -> Block:
        return Block(
            before_attention=norm(layer.ln_1),
            qkv=weights_of([layer.attn.c_attn], dtype),
            query_norm=None,
            key_norm=None,
            scale=layer.attn.scaling,
            out=weights_of([layer.attn.c_proj], dtype),
            before_mlp=norm(layer.ln_2),
            gate=None,
            up=weights_of([layer.mlp.c_fc], dtype),
            down=weights_of([layer.mlp.c_proj], dtype),
        )

    heads = config.num_attention_heads
    return Decoder(
        embed=lambda tokens_B, at_B: (tokens(tokens_B) + positions(at_B)).to(plain),
        rotary=None,
        blocks=tuple(map(block, inner.h)),
        activation=activation_of(config.activation_function, inner.h[0].mlp.act),
        shape=(heads, heads, config.hidden_size // heads),
        norm=norm(inner.ln_f),
        head=weights_of([model.lm_head], dtype),
    )


def plain_embedding(layer: nn.Module) -> nn.Module:
    """The layer, if it is a plain embedding, or Gemma's scaled one. Raises UnsupportedLayer otherwise."""
    # By name: importing the class loads all of Gemma 3.
    if type(layer) is not nn.Embedding and type(layer).__name__ != "Gemma3TextScaledWordEmbedding":
        raise UnsupportedLayer
    return layer


def activation_of(name: str, function: nn.Module) -> Activation:
    """The activation of this name in a config. Raises UnsupportedLayer for an unknown one."""
    if name not in ACTIVATIONS:
        raise UnsupportedLayer
    return Activation(*ACTIVATIONS[name], function)


READERS: dict[str, Callable[[Any, torch.dtype], Decoder]] = {
    "gpt2": read_gpt2,
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), read_llama),
    "gemma3_text": read_gemma3,
}
WITH_WINDOWS = {"gemma3_text"}
"""Architectures whose decoder applies sliding windows."""
