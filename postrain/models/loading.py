"""Loads a causal language model, or the same trunk with a scalar head, for training.

Safetensors only, without code from a repository. Adapters in the directory are merged into the weights, so that a new
adapter on top, when disabled, gives the initial policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.activations import NewGELUActivation

from postrain.errors import ConfigError, as_config_error
from postrain.models.directory import check_config, read_json, saved_end_ids
from postrain.models.disk_cache import disk_cached
from postrain.models.end_tokens import set_end_ids
from postrain.models.packing import supports_packing
from postrain.models.parts import parts_agree, probe
from postrain.models.quiet import quiet
from postrain.models.saved_adapter import load_weights, saved_config
from postrain.models.sources import ResolvedModel
from postrain.models.vocabulary import check_embedding_count, ensure_pad, resize_embeddings
from postrain.seeds import seeded
from postrain.types import Head

MERGE_TOLERANCE = 1e-3
SCALAR_HEAD = "score"
# The auto class for each head, and its architectures.
HEADS: dict[Head, tuple[Any, Any]] = {
    "causal": (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING),
    "scalar": (AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING),
}


@dataclass(frozen=True)
class LoadedModel:
    """A loaded model and the error of merging its adapters."""

    model: PreTrainedModel
    """In eval mode; `name_or_path` is where plain transformers finds these weights, or empty."""
    merge_gap: float | None
    """Largest difference in a logit, on a fixed row, between unmerged and merged adapters; None without adapters."""


def load_tokenizer(resolved: ResolvedModel) -> PreTrainedTokenizerBase:
    """The tokenizer with a pad token and the end tokens of the model (end_tokens.py).

    Raises ConfigError if it has more tokens than the model has embeddings.
    """
    with as_config_error(f"the tokenizer in {resolved.tokenizer} cannot be read"):
        tokenizer = AutoTokenizer.from_pretrained(resolved.tokenizer, local_files_only=True, trust_remote_code=False)
        tokenizer("a")
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"the tokenizer in {resolved.tokenizer} has no end token; set eos_token in its config")
    if not resolved.resize:
        check_embedding_count(tokenizer, read_json(resolved.directory / "config.json"), str(resolved.tokenizer))
    # A run folder with an adapter has a generation config of its own.
    set_end_ids(tokenizer, saved_end_ids(resolved.directory) + saved_end_ids(resolved.tokenizer))
    return ensure_pad(tokenizer)


def load_causal(resolved: ResolvedModel, *, dtype: torch.dtype, quantization: Any = None) -> PreTrainedModel:
    """The language model; see `load`."""
    return load(resolved, "causal", dtype=dtype, quantization=quantization).model


def load_scalar(resolved: ResolvedModel, *, dtype: torch.dtype, quantization: Any = None) -> PreTrainedModel:
    """The trunk with a scalar head, which is initialized near 0 if the weights have none; see `load`."""
    return load(resolved, "scalar", dtype=dtype, quantization=quantization).model


def load(resolved: ResolvedModel, head: Head, *, dtype: torch.dtype, quantization: Any = None) -> LoadedModel:
    """The model in eval mode with adapters merged; checks that trunk and head reproduce its output."""
    if resolved.head == "scalar" and head == "causal":
        raise ConfigError(
            f"model.path: {resolved.name} is a reward model, which cannot generate; give a language model"
        )
    if quantization is not None and resolved.from_scratch:
        raise ConfigError(
            "adapter=qlora quantizes saved weights, and model.from_scratch=true has none; remove one of them"
        )
    if quantization is not None and (resolved.adapters or resolved.resize):
        resolved = merged_on_disk(resolved)
    gap = None
    with quiet(), seeded("model"):
        model = _read(resolved, head, torch.float32 if resolved.adapters else dtype, quantization)
        if resolved.adapters:
            model, gap = merge_adapters(model, resolved.adapters)
            model = model.to(dtype)  # pyright: ignore[reportArgumentType] - wrapped by a decorator
        if resolved.resize:
            resize_embeddings(model, load_tokenizer(resolved))
    if quantization is not None:
        use_differentiable_kernel(model)
    fuse_gelu(model)
    # PEFT writes this name to the adapters it saves.
    model.name_or_path = resolved.loads_as or (str(resolved.directory) if quantization is not None else "")
    check_parts(model.eval(), resolved.name)
    return LoadedModel(model, gap)


def fuse_gelu(model: nn.Module) -> None:
    """Replaces GPT-2's GELU, computed in eight operations, by PyTorch's single one with the same tanh formula."""
    for module in list(model.modules()):
        for name, layer in module.named_children():
            if isinstance(layer, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


def check_parts(model: PreTrainedModel, name: str) -> None:
    """Raises ConfigError if trunk and head do not reproduce the model's output; tests whether it supports packing.

    All ranks run it together on a sharded model.
    """
    if not parts_agree(model):
        raise ConfigError(
            f"{name}: trunk and head of a {type(model).__name__} do not reproduce its logits; "
            "add its output scaling to postrain/models/parts.py"
        )
    supports_packing(model)


def _read(resolved: ResolvedModel, head: Head, dtype: torch.dtype, quantization: Any) -> PreTrainedModel:
    """The base model with saved or new weights."""
    config, kind = model_config(resolved, head), HEADS[head][0]
    if resolved.from_scratch:
        return kind.from_config(config, dtype=dtype, trust_remote_code=False)
    with as_config_error(f"the model in {resolved.directory} cannot be read"):
        model, report = kind.from_pretrained(
            resolved.directory,
            config=config,
            dtype=dtype,
            quantization_config=quantization,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    new = {name for name in report["missing_keys"] if name.split(".")[0] == SCALAR_HEAD}
    if new:
        init_scalar_head(model)
    missing = sorted(report["missing_keys"] - new) or sorted(key[0] for key in report["mismatched_keys"])
    if missing:
        raise ConfigError(
            f"{resolved.directory}: the weights lack parameters of its config.json, such as {missing[0]} "
            f"({len(missing)} in all); copy config.json and weights from the same model"
        )
    return model


def model_config(resolved: ResolvedModel, head: Head) -> Any:
    """The model's config. transformers chooses the attention: SDPA where the architecture supports it."""
    check_config(resolved.directory)
    with as_config_error(f"{resolved.directory / 'config.json'} cannot be used"):
        config = AutoConfig.from_pretrained(resolved.directory, local_files_only=True, trust_remote_code=False)
    if type(config) not in HEADS[head][1]:
        raise ConfigError(f"transformers has no {config.model_type} model with a {head} head; use another model")
    if head == "scalar":
        config.num_labels = 1
        config.get_text_config().pad_token_id = load_tokenizer(resolved).pad_token_id
    return config


def init_scalar_head(model: nn.Module) -> None:
    """Initializes the head with standard deviation 1 / (D + 1): scores near 0, so pairs start at even odds."""
    head = getattr(model, SCALAR_HEAD, None)
    if not isinstance(head, nn.Linear):
        raise ConfigError(f"a {type(model).__name__} has no scalar head called {SCALAR_HEAD}; use another architecture")
    with seeded("scalar head"):
        nn.init.normal_(head.weight, std=1 / (head.in_features + 1))


def use_differentiable_kernel(model: nn.Module) -> None:
    """Keeps bitsandbytes on the differentiable kernel.

    In eval mode on a CPU with AVX512-BF16 it permanently repacks the weights for a kernel that silently drops the
    gradient of its input.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # pyright: ignore[reportArgumentType]


def attach_adapter(model: PreTrainedModel, directory: Path) -> Any:
    """The model with a saved adapter. Raises ConfigError for an adapter of another base model."""
    from peft import get_peft_model  # noqa: PLC0415 - takes seconds

    # The task type would restrict the model class; a language model's adapter may go under a scalar head.
    config = saved_config(directory)
    with as_config_error(f"the adapter in {directory} was trained on another base model"):
        found = get_peft_model(model.eval(), config)
    load_weights(found, directory)
    return found.eval()


def merge_adapters(model: PreTrainedModel, adapters: Sequence[Path]) -> tuple[PreTrainedModel, float]:
    """The model with each adapter merged into its weights, and the largest change of a logit by merging."""
    gap = 0.0
    for adapter in adapters:
        unmerged = attach_adapter(model, adapter)
        before = probe(unmerged)
        model = unmerged.merge_and_unload()
        change = (probe(model) - before).abs().max()
        gap = max(gap, float(change))
        if change > MERGE_TOLERANCE * before.abs().max().clamp(min=1):
            raise ConfigError(
                f"{adapter}: merging this adapter changes a logit by {gap:.2g}; merge it with the software that "
                "trained it and give that directory"
            )
    # PEFT froze the base weights.
    return model.requires_grad_(True), gap


def merged_on_disk(resolved: ResolvedModel) -> ResolvedModel:
    """The model as a cached directory with its adapters merged in float32, for quantization."""

    def make(directory: Path) -> None:
        load(resolved, resolved.head, dtype=torch.float32).model.save_pretrained(directory)
        load_tokenizer(resolved).save_pretrained(directory)

    resized = "-resized" if resolved.resize else ""
    directory = disk_cached(f"merged-{resolved.fingerprint}{resized}", make)
    return replace(resolved, directory=directory, adapters=(), resize=False)
