"""Tiny random models of common architectures, built in milliseconds."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, LlamaConfig, Qwen3Config

VOCABULARY = 61

# Settings that all architectures after GPT-2 name alike.
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}

SHAPES = {
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY,
        n_layer=2,
        n_embd=16,
        n_head=2,
        n_positions=64,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    ),
    "llama": lambda: LlamaConfig(
        **SMALL,
        num_attention_heads=4,
        num_key_value_heads=2,
    ),
    "qwen3": lambda: Qwen3Config(
        **SMALL,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=True,
    ),
    # Every other layer attends to the last six tokens only.
    "gemma3": lambda: Gemma3TextConfig(
        **SMALL,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"],
        pad_token_id=0,
    ),
}


def tiny_model(architecture: str = "gpt2", seed: int = 0) -> Any:
    """A random model with weights large enough that its distributions are far from uniform.

    The type is Any because the attributes of a Hugging Face model depend on its architecture.
    """
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(SHAPES[architecture](), attn_implementation="sdpa").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.3)
    return model
