"""Reads weights: a causal language model, or the same trunk with a scalar head, ready to be trained.

Safetensors only, no code from a repository. Adapters found in the directory are merged into the weights, so that
where a run starts is what a fresh adapter on top of it gives when it is off.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

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

from postrain.errors import ConfigError
from postrain.models.directory import check_config, read_json
from postrain.models.disk_cache import disk_cached
from postrain.models.packing import supports_packing
from postrain.models.parts import parts_agree, probe
from postrain.models.quiet import quiet
from postrain.models.sources import ResolvedModel
from postrain.models.vocabulary import check_embedding_count, ensure_pad, resize_embeddings
from postrain.seeds import seeded

MERGE_TOLERANCE = 1e-3
SCALAR_HEAD = "score"
Head = Literal["causal", "scalar"]
# The class that reads a model with each head, and the architectures it knows.
HEADS: dict[Head, tuple[Any, Any]] = {
    "causal": (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING),
    "scalar": (AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING),
}


@dataclass(frozen=True)
class LoadedModel:
    """A model and what happened on the way."""

    model: PreTrainedModel
    """In eval mode; `name_or_path` is where plain transformers finds these weights, empty where it cannot."""
    merge_gap: float | None
    """The largest difference in a logit, on a fixed row, between an adapter beside the weights and merged into them."""


def load_tokenizer(resolved: ResolvedModel) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a pad token.

    Raises ConfigError where it has more tokens than the model has embeddings.
    """
    with _one_line(f"the tokenizer in {resolved.tokenizer} cannot be read"):
        tokenizer = AutoTokenizer.from_pretrained(resolved.tokenizer, local_files_only=True, trust_remote_code=False)
        tokenizer("a")
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"the tokenizer in {resolved.tokenizer} has no end token; set eos_token in its config")
    if not resolved.resize:
        check_embedding_count(tokenizer, read_json(resolved.directory / "config.json"), str(resolved.tokenizer))
    return ensure_pad(tokenizer)


def load_causal(resolved: ResolvedModel, *, dtype: torch.dtype, quantization: Any = None) -> PreTrainedModel:
    """The language model, as `load` gives it."""
    return load(resolved, "causal", dtype=dtype, quantization=quantization).model


def load_scalar(resolved: ResolvedModel, *, dtype: torch.dtype, quantization: Any = None) -> PreTrainedModel:
    """The trunk with a head of one output; a head that is new starts small."""
    return load(resolved, "scalar", dtype=dtype, quantization=quantization).model


def load(resolved: ResolvedModel, head: Head, *, dtype: torch.dtype, quantization: Any = None) -> LoadedModel:
    """The model, its adapters merged, in eval mode, its parts known to be the whole."""
    if resolved.head == "scalar" and head == "causal":
        raise ConfigError(f"model.path: {resolved.name} is a reward model, which cannot write; give a language model")
    if quantization is not None and resolved.from_scratch:
        raise ConfigError("adapter=qlora keeps trained weights in 4 bits, and model.from_scratch=true has none of them")
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
    # PEFT writes this name into the adapters it saves.
    model.name_or_path = resolved.loads_as or (str(resolved.directory) if quantization is not None else "")
    if not parts_agree(model.eval()):
        raise ConfigError(
            f"{resolved.name}: the parts of a {type(model).__name__} do not add up to the model; "
            "this architecture needs its output scaling in postrain/models/parts.py"
        )
    # Found out now: under sharding all ranks would have to run the trial at the same moment.
    supports_packing(model)
    return LoadedModel(model, gap)


def _read(resolved: ResolvedModel, head: Head, dtype: torch.dtype, quantization: Any) -> PreTrainedModel:
    """The base weights, or fresh ones."""
    config, kind = _config(resolved, head), HEADS[head][0]
    if resolved.from_scratch:
        return kind.from_config(config, dtype=dtype, trust_remote_code=False)
    with _one_line(f"the model in {resolved.directory} cannot be read"):
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
    amiss = sorted(report["missing_keys"] - new) or sorted(key[0] for key in report["mismatched_keys"])
    if amiss:
        raise ConfigError(
            f"{resolved.directory}: its weights lack what its config.json describes, such as {amiss[0]} "
            f"({len(amiss)} in all); copy config.json and weights from the same model"
        )
    return model


def _config(resolved: ResolvedModel, head: Head) -> Any:
    """The model's config; attention is left to transformers, which takes SDPA wherever an architecture allows it."""
    check_config(resolved.directory)
    with _one_line(f"{resolved.directory / 'config.json'} cannot be used"):
        config = AutoConfig.from_pretrained(resolved.directory, local_files_only=True, trust_remote_code=False)
    if type(config) not in HEADS[head][1]:
        raise ConfigError(f"transformers has no {config.model_type} model with a {head} head; use another model")
    if head == "scalar":
        config.num_labels = 1
        config.get_text_config().pad_token_id = load_tokenizer(resolved).pad_token_id
    return config


def init_scalar_head(model: nn.Module) -> None:
    """Scores that start near 0, so that a reward model starts at even odds: standard deviation 1 / (D + 1)."""
    head = getattr(model, SCALAR_HEAD, None)
    if not isinstance(head, nn.Linear):
        raise ConfigError(f"a {type(model).__name__} has no scalar head called {SCALAR_HEAD}; use another architecture")
    with seeded("scalar head"):
        nn.init.normal_(head.weight, std=1 / (head.in_features + 1))


def use_differentiable_kernel(model: nn.Module) -> None:
    """Keeps bitsandbytes on the kernel that has a gradient.

    In eval mode on a CPU with AVX512-BF16 it repacks the weights for good, for a product that drops the gradient of
    its input without a word: everything below would learn from a wrong one.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # pyright: ignore[reportArgumentType]


def merge_adapters(model: PreTrainedModel, adapters: Sequence[Path]) -> tuple[PreTrainedModel, float]:
    """The model with each adapter merged into its weights, and the largest change in a logit that merging made."""
    # Start-up time: seconds that only a run with an adapter has to spend.
    from peft import PeftConfig, PeftModel  # noqa: PLC0415

    gap = 0.0
    for adapter in adapters:
        with _one_line(f"the adapter in {adapter} cannot be read"):
            config = PeftConfig.from_pretrained(str(adapter))
        # The task would decide what may be under the adapter; a language model's adapter under a scalar head is fine.
        config.task_type = None
        beside = PeftModel.from_pretrained(model.eval(), str(adapter), config=config)
        before = probe(beside)
        model = beside.merge_and_unload()
        change = (probe(model) - before).abs().max()
        gap = max(gap, float(change))
        if change > MERGE_TOLERANCE * before.abs().max().clamp(min=1):
            raise ConfigError(
                f"{adapter}: merging this adapter changes a logit by {gap:.2g}; merge it where it was trained and "
                "give that directory"
            )
    # PEFT froze the weights for its adapter; now they are the model.
    return model.requires_grad_(True), gap


def merged_on_disk(resolved: ResolvedModel) -> ResolvedModel:
    """The same model as a directory of its own: weights are merged in float32 before they are quantised."""

    def make(directory: Path) -> None:
        load(resolved, resolved.head, dtype=torch.float32).model.save_pretrained(directory)
        load_tokenizer(resolved).save_pretrained(directory)

    resized = "-resized" if resolved.resize else ""
    directory = disk_cached(f"merged-{resolved.fingerprint}{resized}", make)
    return replace(resolved, directory=directory, adapters=(), resize=False)


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Turns whatever a library raises for odd files of a model into one line."""
    try:
        yield
    except ConfigError:
        raise
    # Not a list of types: transformers raises KeyError and TypeError, tokenizers a bare Exception, for a wrong field.
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ConfigError(f"{what}: {reason}") from error
