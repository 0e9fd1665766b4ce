"""Tiny models of common architectures, with a byte-level tokenizer."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from postrain.models.sources import ModelSource

PAD, END, TURN = 256, 257, 258
VOCABULARY = 259
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "bos_token_id": END,
    "eos_token_id": END,
    "pad_token_id": None,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "gpt2": GPT2Config(
        n_embd=16, n_layer=2, n_head=2, n_positions=64, vocab_size=VOCABULARY, bos_token_id=END, eos_token_id=END
    ),
    "llama": LlamaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES),
    "gemma2": Gemma2Config(**SIZES, query_pre_attn_scalar=8, final_logit_softcapping=0.05),
    "gemma3": Gemma3TextConfig(
        **SIZES, query_pre_attn_scalar=8, sliding_window=6, layer_types=["sliding_attention", "full_attention"]
    ),
    "granite": GraniteConfig(**SIZES, logits_scaling=8.0),
    "cohere": CohereConfig(**SIZES, logit_scale=0.25),
}
architectures = pytest.mark.parametrize("architecture", list(CONFIGS))


def tiny_model(architecture: str, seed: int = 0) -> PreTrainedModel:
    """A model with random weights and biases, so that a missing bias is detected."""
    torch.manual_seed(seed)
    # A copy: a test may resize the model, which changes its config.
    model = AutoModelForCausalLM.from_config(deepcopy(CONFIGS[architecture]))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def byte_tokenizer(pad: str | None = "<|pad|>") -> PreTrainedTokenizerBase:
    """A tokenizer with a token per byte, then pad, end of text and end of turn."""
    vocabulary = {char: index for index, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary |= {"<|pad|>" if pad else "unused": PAD, "<|endoftext|>": END, "<|end|>": TURN}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=pad,
        eos_token="<|endoftext|>",
        bos_token="<|endoftext|>",
        extra_special_tokens=["<|end|>"],
        chat_template="{% for m in messages %}{{ m.content }}<|end|>{% endfor %}",
    )


def source(path: Path | str, **changes: object) -> ModelSource:
    """A model source with the defaults of a local path."""
    settings = {
        "name": None,
        "path": str(path),
        "revision": None,
        "gguf_package": None,
        "offline": "fail",
        "from_scratch": False,
    }
    return ModelSource(**settings | changes)  # pyright: ignore[reportArgumentType]


@pytest.fixture(autouse=True)
def _empty_caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides the user's downloaded and converted models from tests."""
    caches = tmp_path_factory.mktemp("caches")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(caches / "hub"))
    monkeypatch.setenv("POSTRAIN_CACHE", str(caches / "postrain"))


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """A function that saves a tiny model with its tokenizer and returns the directory."""

    def save(architecture: str = "gpt2") -> Path:
        directory = tmp_path / f"tiny-{architecture}"
        tiny_model(architecture).save_pretrained(directory)
        byte_tokenizer().save_pretrained(directory)
        return directory

    return save


def rows(*texts: str) -> dict[str, torch.Tensor]:
    """Texts as a right-padded batch."""
    tokenizer = byte_tokenizer()
    tokenizer.padding_side = "right"
    return dict(tokenizer(list(texts), return_tensors="pt", padding=True))
