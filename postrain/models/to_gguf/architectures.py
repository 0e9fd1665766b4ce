"""Configs and weights of transformers in the names, layouts and metadata of llama.cpp, by architecture.

Tensor names come from the table of the package gguf. A setting that llama.cpp cannot express is refused: it would
compute other logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from postrain.errors import ConfigError
from postrain.models.attention_kinds import FULL, SLIDING, layer_kinds

GEMMA3_PATTERN = 6
"""llama.cpp takes every sixth layer of Gemma 3 as full attention."""


@dataclass(frozen=True)
class Architecture:
    """One architecture in llama.cpp."""

    name: str
    """Its name in llama.cpp, which prefixes its metadata."""
    problem: Callable[[Any], str | None]
    """The setting of a config that llama.cpp cannot express, or None."""
    convert: Callable[[str, Tensor, Any], Tensor]
    """A parameter, given its name in transformers, in llama.cpp's layout."""


def architecture_of(config: Any) -> Architecture:
    """The architecture of a config. Raises ConfigError for one that is not supported."""
    found = ARCHITECTURES.get(config.model_type)
    if found is None:
        raise ConfigError(
            f"--gguf: {config.model_type} models are not supported; expected one of {', '.join(ARCHITECTURES)} "
            "(convert others with convert_hf_to_gguf.py of llama.cpp)"
        )
    if problem := found.problem(config):
        raise ConfigError(f"--gguf: llama.cpp has no {found.name} model with {problem}; train a model without it")
    return found


def add_metadata(writer: Any, config: Any) -> None:
    """Writes the hyperparameters of the model."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    if config.model_type == "gpt2":
        writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    width = head_width(config)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(width)
    writer.add_value_length(width)
    if config.model_type == "llama":
        writer.add_rope_dimension_count(width)
    rope = rope_of(config)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope.get("rope_type") == "linear":
        # The first member of RopeScalingType after NONE; the package is not imported here.
        writer.add_string(f"{writer.arch}.rope.scaling.type", "linear")
        writer.add_rope_scaling_factor(rope["factor"])
    if config.model_type == "gemma3_text":
        writer.add_sliding_window(config.sliding_window)
        writer.add_rope_freq_base_swa(config.rope_parameters[SLIDING]["rope_theta"])


def extra_tensors(config: Any) -> Iterator[tuple[str, Tensor]]:
    """Tensors that are not parameters: the divisors of the rotary frequencies of Llama 3.1."""
    if config.model_type != "gpt2" and (rope := rope_of(config)).get("rope_type") == "llama3":
        # Imported here because it takes seconds.
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # noqa: PLC0415

        width = head_width(config)
        plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        yield "rope_freqs.weight", plain / scaled


def rope_of(config: Any) -> dict[str, Any]:
    """The rotary settings, of the layers with full attention if layers differ."""
    return config.rope_parameters.get("full_attention", config.rope_parameters)


def head_width(config: Any) -> int:
    """The width of an attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _rope_problem(config: Any) -> str | None:
    kind = rope_of(config).get("rope_type", "default")
    allowed = ("default", "linear", "llama3") if config.model_type == "llama" else ("default", "linear")
    return None if kind in allowed else f"{kind} rotary scaling"


def _llama_problem(config: Any) -> str | None:
    return _rope_problem(config) or (f"hidden_act={config.hidden_act}" if config.hidden_act != "silu" else None)


def _qwen_problem(config: Any) -> str | None:
    return _llama_problem(config) or ("sliding windows" if SLIDING in layer_kinds(config) else None)


def _gemma3_problem(config: Any) -> str | None:
    expected = [SLIDING if (layer + 1) % GEMMA3_PATTERN else FULL for layer in range(config.num_hidden_layers)]
    if list(config.layer_types) != expected:
        return f"another order of attention layers than five sliding, one full ({GEMMA3_PATTERN} layers)"
    if config.query_pre_attn_scalar != config.head_dim:
        return f"query_pre_attn_scalar={config.query_pre_attn_scalar} and head_dim={config.head_dim}"
    return _rope_problem(config)


def _gpt2_problem(config: Any) -> str | None:
    if config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights:
        return "another scale of attention than 1/√width"
    known = config.activation_function in ("gelu_new", "gelu_pytorch_tanh")
    return None if known else f"activation_function={config.activation_function}"


def _unchanged(name: str, values: Tensor, config: Any) -> Tensor:
    return values


def _llama_layout(name: str, values: Tensor, config: Any) -> Tensor:
    """Queries and keys of each head with the two halves of a rotation interleaved: llama.cpp rotates neighbours."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = heads.get(name.split(".")[-2])
    if count is None:
        return values
    return values.unflatten(0, (count, 2, -1)).transpose(1, 2).flatten(0, 2)


def _gemma_layout(name: str, values: Tensor, config: Any) -> Tensor:
    """Gemma multiplies by 1 + weight, llama.cpp by the weight."""
    return values + 1 if name.endswith("norm.weight") else values


def _gpt2_layout(name: str, values: Tensor, config: Any) -> Tensor:
    """GPT-2 stores linear weights transposed."""
    return values.T if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) else values


ARCHITECTURES = {
    "llama": Architecture("llama", _llama_problem, _llama_layout),
    "qwen2": Architecture("qwen2", _qwen_problem, _unchanged),
    "qwen3": Architecture("qwen3", _qwen_problem, _unchanged),
    "gemma3_text": Architecture("gemma3", _gemma3_problem, _gemma_layout),
    "gpt2": Architecture("gpt2", _gpt2_problem, _gpt2_layout),
}
"""By the model type of transformers."""
