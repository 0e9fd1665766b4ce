"""The `adapter` group: full fine-tuning, LoRA and QLoRA through PEFT, or further training of a saved adapter.

Each adapter works with every method, for language models and for models with a scalar head. An adapter that does not
start as the identity (a saved one, PiSSA, OLoRA) has a frozen copy, the reference adapter, which gives the initial
policy; for the others that is the base model.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from postrain.config.keywords import refuse_unknown_keywords
from postrain.errors import ConfigError, as_config_error
from postrain.models.directory import ADAPTER_CONFIG, read_json
from postrain.models.quiet import quiet
from postrain.models.saved_adapter import REFERENCE, load_weights, saved_config
from postrain.models.sources import ResolvedModel
from postrain.models.vocabulary import embedding_names, embeddings_needed, ties_embeddings, untrained_tokens
from postrain.seeds import seeded
from postrain.types import Fraction, Head, Positive, Size

CHANGES_BASE = ("pissa", "pissa_niter_16", "olora")
"""Initializations that move a part of the base weights into the adapter."""

TIED_BY_PEFT = ("embed_tokens", "lm_head")
"""The embeddings that PEFT keeps tied to each other."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """Base class of adapters: trains all weights."""

    def quantization(self) -> Any:
        """Quantization config of the base weights; None loads them unquantized."""
        return None

    def split(self, resolved: ResolvedModel) -> tuple[ResolvedModel, Path | None]:
        """The model to load, whose adapters are merged into its weights, and the saved adapter to train further."""
        return resolved, None

    def wrap(
        self, model: nn.Module, *, head: Head, trainable_tokens: Sequence[int] = (), saved: Path | None = None
    ) -> nn.Module:
        """The policy: `model` with the adapter, in eval mode; the embeddings of `trainable_tokens` are trained too.

        `saved` is the second result of `split`.
        """
        return model

    def note(self, resolved: ResolvedModel) -> str | None:
        """A line for the console on what becomes of the adapter in the model's directory; None without one."""
        if not resolved.adapters:
            return None
        saved = resolved.adapters[-1]
        return f"adapter: the one in {saved} is merged into the weights; adapter=continue trains it further"

    @property
    def lr_ratio(self) -> float:
        """The learning rate of LoRA's B matrices as a multiple of that of all other parameters."""
        return 1.0

    def new_token_ids(self, model: nn.Module, tokenizer: Any, used: Sequence[int]) -> list[int]:
        """The tokens, among those `used` in the data, whose embeddings are trained besides the adapter."""
        return []


@dataclass(frozen=True, kw_only=True)
class NoAdapter(Adapter):
    """Full fine-tuning."""


@refuse_unknown_keywords
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
    init_lora_weights: Literal["default", "gaussian", "orthogonal", "olora", "pissa", "pissa_niter_16"] = "default"
    """Initial weights, as in PEFT. default, gaussian and orthogonal start as the identity; pissa takes the principal
    singular vectors of each weight (Meng et al. 2024; pissa_niter_16 is a fast approximation), olora its QR
    decomposition (Büyükakyüz 2024). Exported as plain LoRA, of rank 2r for pissa and olora."""
    loraplus_lr_ratio: Positive = 1.0
    """LoRA+ (Hayou et al. 2024): learning rate of the B matrices as a multiple of method.learning_rate, such as 16 with
    half the usual rate; 1 disables it."""
    modules_to_save: tuple[str, ...] = ()
    """Names of modules that are trained in full and saved with the adapter, such as '[lm_head]'."""
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

    @property
    def lr_ratio(self) -> float:
        return self.loraplus_lr_ratio

    def wrap(
        self, model: nn.Module, *, head: Head, trainable_tokens: Sequence[int] = (), saved: Path | None = None
    ) -> nn.Module:
        with quiet():
            # Imported here because it takes seconds.
            from peft import LoraConfig  # noqa: PLC0415

        self._check_targets(model)
        if self.init_lora_weights in CHANGES_BASE and self.quantization() is not None:
            raise ConfigError(
                f"adapter.init_lora_weights={self.init_lora_weights} decomposes the base weights, which adapter=qlora "
                "keeps in 4 bits; use default, or adapter=lora"
            )
        modules = [*(["score"] if head == "scalar" else []), *self.modules_to_save]
        config = LoraConfig(
            task_type="SEQ_CLS" if head == "scalar" else "CAUSAL_LM",
            r=self.r,
            # PEFT annotates int but only divides by r.
            lora_alpha=self.alpha,  # pyright: ignore[reportArgumentType]
            lora_dropout=self.dropout,
            use_rslora=self.rslora,
            use_dora=self.dora,
            # PEFT's type has a placeholder for the number of iterations.
            init_lora_weights=cast("Any", True if self.init_lora_weights == "default" else self.init_lora_weights),
            target_modules=list(self.target_modules) if self.target_modules else "all-linear",
            # GPT-2 stores its linear weights transposed.
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
            modules_to_save=modules or None,
            # Without it, a trained copy of the embeddings would leave the tied output embeddings behind.
            ensure_weight_tying=_trains_tied_embeddings(model, self.modules_to_save),
            trainable_token_indices=(
                {name: list(trainable_tokens) for name in embedding_names(model)} if trainable_tokens else None
            ),
        )
        return with_adapter(model, config)

    def _check_targets(self, model: Any) -> None:
        """Raises ConfigError for a name that no linear layer has, and for output embeddings tied to the input's."""
        linear = sorted(
            {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, nn.Linear | Conv1D)}
        )
        names = {name for name, _ in model.named_modules() if name}
        for module in self.modules_to_save:
            if not any(name == module or name.endswith(f".{module}") for name in names):
                raise ConfigError(
                    f"adapter.modules_to_save: {type(model).__name__} has no module {module!r}; it has "
                    f"{', '.join(sorted({name.rpartition('.')[2] for name in names} - {*map(str, range(999))}))}"
                )
        for target in self.target_modules or ():
            if target.rpartition(".")[2] not in linear:
                raise ConfigError(
                    f"adapter.target_modules: {type(model).__name__} has no linear layer {target!r}; "
                    f"it has {', '.join(linear)} (null selects all in the trunk)"
                )
            output = getattr(model, "get_output_embeddings", lambda: None)()
            tied = [name for name, part in model.named_modules() if part is output and ties_embeddings(model)]
            if any(f".{name}".endswith(f".{target}") for name in tied):
                raise ConfigError(
                    f"adapter.target_modules: {target} of this {type(model).__name__} is tied to the input embeddings, "
                    "which the adapter would change too when it is merged; leave it out"
                )


def with_adapter(model: nn.Module, config: Any, saved: Path | None = None) -> nn.Module:
    """The model in eval mode with a new adapter, or with the one in `saved`, and its reference adapter, if needed."""
    from peft import get_peft_model  # noqa: PLC0415 - start-up time

    # Shapes only, in estimates of memory.
    meta = any(parameter.is_meta for parameter in model.parameters())
    changes_base = config.init_lora_weights in CHANGES_BASE
    if meta:
        config.init_lora_weights = True
    with quiet(), seeded("adapter"):
        with as_config_error(f"the adapter in {saved} was trained on another base model") if saved else nullcontext():
            policy: Any = get_peft_model(model, config)  # pyright: ignore[reportArgumentType]
        if saved is not None and not meta:
            load_weights(policy, saved)
        if changes_base or saved is not None:
            add_reference_adapter(policy)
    return policy.eval()


def add_reference_adapter(policy: Any) -> None:
    """Adds a frozen copy of the adapter as it is now."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict  # noqa: PLC0415 - start-up time

    config = copy.deepcopy(policy.peft_config["default"])
    # The base weights have been changed once.
    config.init_lora_weights = True
    policy.add_adapter(REFERENCE, config)
    weights = get_peft_model_state_dict(policy, save_embedding_layers=False)
    set_peft_model_state_dict(policy, weights, adapter_name=REFERENCE)
    policy.set_adapter("default")


def _trains_tied_embeddings(model: Any, modules: Sequence[str]) -> bool:
    """Whether `modules` include embeddings that are tied. Raises ConfigError for those that PEFT cannot keep tied."""
    embeddings = [name for name in embedding_names(model) if name.rpartition(".")[2] in modules] + (
        ["lm_head"] if "lm_head" in modules else []
    )
    if not embeddings or not ties_embeddings(model):
        return False
    if any(name.rpartition(".")[2] not in TIED_BY_PEFT for name in embeddings):
        raise ConfigError(
            f"adapter.modules_to_save: PEFT cannot train {embeddings[0]} of a {type(model).__name__}, which is tied to "
            "the output embeddings; train single tokens with adapter.new_tokens, or all weights with adapter=none"
        )
    return True


@refuse_unknown_keywords
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


@dataclass(frozen=True, kw_only=True)
class Continue(Adapter):
    """Trains the saved adapter of `model` further; rank, scaling and layers are its own.

    The reference policy is the model with the adapter as it was saved.
    """

    load_in_4bit: bool = False
    """Load the base weights in 4 bits, as adapter=qlora does."""
    loraplus_lr_ratio: Positive = 1.0
    """LoRA+ (Hayou et al. 2024): learning rate of the B matrices as a multiple of method.learning_rate; 1 disables
    it."""

    @property
    def lr_ratio(self) -> float:
        return self.loraplus_lr_ratio

    def quantization(self) -> Any:
        return QLoRA().quantization() if self.load_in_4bit else None

    def split(self, resolved: ResolvedModel) -> tuple[ResolvedModel, Path | None]:
        if not resolved.adapters:
            raise ConfigError(
                f"adapter=continue: {resolved.name} has no adapter, its weights are complete; add one with adapter=lora"
            )
        *merged, last = resolved.adapters
        base = replace(resolved, adapters=tuple(merged))
        # The adapter is saved again with the base model that its config names.
        named = None if merged else read_json(last / ADAPTER_CONFIG).get("base_model_name_or_path")
        beside = last / str(named)
        return replace(base, loads_as=str(beside.resolve()) if named and beside.is_dir() else named), last

    def wrap(
        self, model: nn.Module, *, head: Head, trainable_tokens: Sequence[int] = (), saved: Path | None = None
    ) -> nn.Module:
        assert saved is not None, "`split` gives the saved adapter"
        config = saved_config(saved, head=head)
        tokens = next(iter((config.trainable_token_indices or {}).values()), [])
        if missing := sorted(set(trainable_tokens) - set(tokens)):
            raise ConfigError(
                f"adapter=continue: the rows have {len(missing)} tokens with untrained embeddings (the first has id "
                f"{missing[0]}), which the adapter in {saved} does not train; use adapter=lora"
            )
        return with_adapter(model, config, saved)

    def note(self, resolved: ResolvedModel) -> str | None:
        saved = resolved.adapters[-1]
        config = read_json(saved / ADAPTER_CONFIG)
        return f"adapter: continues the one in {saved} (rank {config.get('r')}, alpha {config.get('lora_alpha')})"
