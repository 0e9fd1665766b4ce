"""The `adapter` group: full fine-tuning, or LoRA and QLoRA through PEFT.

Each adapter works with every method, for language models and for models with a scalar head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from postrain.errors import ConfigError
from postrain.models.quiet import quiet
from postrain.models.vocabulary import embedding_names, embeddings_needed, untrained_tokens
from postrain.seeds import seeded
from postrain.types import Fraction, Positive, Size

Head = Literal["causal", "scalar"]


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """Base class of adapters: trains all weights."""

    def quantization(self) -> Any:
        """Quantization config of the base weights; None loads them unquantized."""
        return None

    def wrap(self, model: nn.Module, *, head: Head, trainable_tokens: Sequence[int] = ()) -> nn.Module:
        """The policy: `model` with the adapter, in eval mode; the embeddings of `trainable_tokens` are trained too."""
        return model

    def new_token_ids(self, model: nn.Module, tokenizer: Any, used: Sequence[int]) -> list[int]:
        """The tokens, among those `used` in the data, whose embeddings are trained besides the adapter."""
        return []


@dataclass(frozen=True, kw_only=True)
class NoAdapter(Adapter):
    """Full fine-tuning."""


@dataclass(frozen=True, kw_only=True)
class LoRA(Adapter):
    """Low-rank updates of linear layers; the base weights are frozen (Hu et al. 2021)."""

    r: Size = 16
    """Rank of the updates."""
    alpha: Positive = 32.0
    """Scaling numerator: updates are scaled by alpha / r."""
    dropout: Fraction = 0.0
    """Dropout on the input of each update; only active in methods that train with dropout."""
    rslora: bool = False
    """Scale by alpha / √r instead, so that higher ranks do not learn more slowly (Kalajdzievski 2023)."""
    dora: bool = False
    """Decompose weights into magnitude and direction, and train both (Liu et al. 2024)."""
    target_modules: tuple[str, ...] | None = None
    """Names of the layers to adapt; null is every linear layer of the trunk."""
    new_tokens: tuple[str, ...] | None = None
    """Tokens whose embeddings are trained too, such as '[<think>,</think>]'. null selects tokens of the data with
    untrained embeddings (added by a resize, or reserved); [] freezes all embeddings."""

    def new_token_ids(self, model: nn.Module, tokenizer: Any, used: Sequence[int]) -> list[int]:
        if self.new_tokens is None:
            return untrained_tokens(model, used, tokens=embeddings_needed(tokenizer))
        vocabulary = tokenizer.get_vocab()
        if unknown := [token for token in self.new_tokens if token not in vocabulary]:
            raise ConfigError(
                f"adapter.new_tokens: the tokenizer has no token {unknown[0]!r}; add it and save the tokenizer"
            )
        return sorted({vocabulary[token] for token in self.new_tokens})

    def wrap(self, model: nn.Module, *, head: Head, trainable_tokens: Sequence[int] = ()) -> nn.Module:
        with quiet():
            # Imported here because it takes seconds.
            from peft import LoraConfig, get_peft_model  # noqa: PLC0415

        self._check_targets(model)
        config = LoraConfig(
            task_type="SEQ_CLS" if head == "scalar" else "CAUSAL_LM",
            r=self.r,
            # PEFT annotates int but only divides by r.
            lora_alpha=self.alpha,  # pyright: ignore[reportArgumentType]
            lora_dropout=self.dropout,
            use_rslora=self.rslora,
            use_dora=self.dora,
            target_modules=list(self.target_modules) if self.target_modules else "all-linear",
            # GPT-2 stores its linear weights transposed.
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
            modules_to_save=["score"] if head == "scalar" else None,
            trainable_token_indices=(
                {name: list(trainable_tokens) for name in embedding_names(model)} if trainable_tokens else None
            ),
        )
        with quiet(), seeded("adapter"):
            return get_peft_model(model, config).eval()  # pyright: ignore[reportArgumentType]

    def _check_targets(self, model: nn.Module) -> None:
        """Raises ConfigError for a name that no linear layer has."""
        linear = sorted(
            {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, nn.Linear | Conv1D)}
        )
        for target in self.target_modules or ():
            if target.rpartition(".")[2] not in linear:
                raise ConfigError(
                    f"adapter.target_modules: {type(model).__name__} has no linear layer {target!r}; "
                    f"it has {', '.join(linear)} (null selects all in the trunk)"
                )


@dataclass(frozen=True, kw_only=True)
class QLoRA(LoRA):
    """LoRA on 4-bit base weights: NormalFloat with double quantization (Dettmers et al. 2023)."""

    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype to which weights are dequantized for matrix products."""

    def quantization(self) -> Any:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, self.compute_dtype),
            # Heads are not quantized: they are small, and the scalar head is trained.
            llm_int8_skip_modules=["lm_head", "score"],
        )
