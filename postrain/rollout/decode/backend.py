"""Decode backends: next-token logits of rows that decode together, from a model and its KV cache.

`FastBackend` decodes with the forward pass of fast.py (not of sharded models, since it reads whole weights),
`SlotBackend` with the model's over the slot cache, `PaddedBackend` with left-padded rows in the model's own cache, for
every model but without continuous batching. `backend_for` chooses the fastest that reproduces the model's logits on two
short rows, checked once per model.

Axes: B rows in slots, P prefilled prompts, L positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import Cache, DynamicCache

from postrain.errors import ConfigError
from postrain.models.attention_kinds import SLIDING, has_known_kinds, is_windowed, windows
from postrain.models.parts import comparing, logits_of, probe_ids, tolerance, trunk_output, unwrapped
from postrain.models.reference import Reference, in_eval_mode
from postrain.rollout.decode.cache import CacheSpec, SlotCache
from postrain.rollout.decode.fast import Decoder, decoder_of, is_supported
from postrain.rollout.decode.weights import UnsupportedLayer, plain_dtype


@dataclass(frozen=True)
class Prefilled:
    """Prefilled prompts, ready to be admitted."""

    logits_PV: Tensor
    """Logits of the first new token."""
    lengths_P: Tensor
    caches: tuple[Cache, ...]
    """One per model."""

    def select(self, index: int) -> Prefilled:
        """The prompt at `index`; frees the keys and values of the others."""
        for cache in self.caches:
            cache.batch_select_indices(torch.tensor([index], device=self.lengths_P.device))
        return Prefilled(self.logits_PV[index : index + 1], self.lengths_P[index : index + 1], self.caches)


class DecodeBackend(Protocol):
    """Next-token logits of rows in slots; the first slots are in use."""

    continuous: bool
    """Whether rows can be admitted while others are decoding (continuous batching)."""
    device: torch.device

    def prefill(self, prompts: Sequence[Tensor]) -> Prefilled:
        """Runs prompts without admitting them."""
        ...

    def admit(self, prefilled: Prefilled, prompts_B: Tensor, slots_B: Tensor) -> None:
        """Copies the prefilled prompts of indices `prompts_B` to `slots_B`."""
        ...

    def move(self, source_B: Tensor, target_B: Tensor, rows: int) -> None:
        """Copies slots `source_B` over `target_B`; the first `rows` slots are in use afterwards."""
        ...

    def step(self, tokens_B: Tensor) -> Tensor:
        """Runs one token per slot in use; returns the logits of the next token, [B, V]."""
        ...


class SlotBackend:
    """The model's forward pass over a slot cache."""

    continuous = True
    cache_dtype: torch.dtype | None = None
    """Dtype of the cache; None is that of the keys of the model's forward pass."""

    def __init__(self, model: nn.Module, *, spec: CacheSpec, dtype: torch.dtype | None) -> None:
        self.model, self.dtype = model, dtype
        self.config: Any = unwrapped(model).config.get_text_config()
        self.device = next(model.parameters()).device
        self.cache = SlotCache(spec, self.device)

    def prefill(self, prompts: Sequence[Tensor]) -> Prefilled:
        """Runs prompts padded on the right, which causal attention ignores."""
        # Not the pad token: transformers warns about pad tokens without an attention mask.
        filler = 1 if self.config.pad_token_id == 0 else 0
        ids_PL = pad_sequence(list(prompts), batch_first=True, padding_value=filler).to(self.device)
        lengths_P = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        cache = DynamicCache()
        with autocast_to(self.device, self.autocast_dtype()):
            states = trunk_output(self.model, input_ids=ids_PL, past_key_values=cache, use_cache=True).last_hidden_state
            last = states[torch.arange(len(prompts), device=self.device), lengths_P - 1]
            return Prefilled(logits_of(self.model, last), lengths_P, (cache,))

    def admit(self, prefilled: Prefilled, prompts_B: Tensor, slots_B: Tensor) -> None:
        self.cache.admit(prefilled.caches[0], prefilled.lengths_P, prompts_B, slots_B, self.cache_dtype)

    def move(self, source_B: Tensor, target_B: Tensor, rows: int) -> None:
        self.cache.move(source_B, target_B)

    def step(self, tokens_B: Tensor) -> Tensor:
        self.cache.advance(len(tokens_B))
        with autocast_to(self.device, self.autocast_dtype()):
            return self.forward(tokens_B)

    def forward(self, tokens_B: Tensor) -> Tensor:
        output = self.model(
            input_ids=tokens_B[:, None],
            attention_mask=self.attention_masks(),
            position_ids=self.cache.cursor.position_B[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        return output.logits[:, -1]

    def autocast_dtype(self) -> torch.dtype | None:
        """Autocast dtype of the model's forward pass; None leaves autocast as it is."""
        return self.dtype

    def attention_masks(self) -> Any:
        """The attention mask; with sliding-window layers, a mask for each kind of layer."""
        if SLIDING not in (of_kinds := windows(self.config)):
            return self.cache.attention_mask()
        return {kind: self.cache.attention_mask(window) for kind, window in of_kinds.items()}


class FastBackend(SlotBackend):
    """Prefills with the model and decodes with the forward pass of fast.py."""

    def __init__(self, model: nn.Module, *, spec: CacheSpec, dtype: torch.dtype | None) -> None:
        super().__init__(model, spec=spec, dtype=dtype)
        dtype = dtype or next(model.parameters()).dtype
        self.cache_dtype = plain_dtype(dtype)
        with torch.autocast(self.device.type, enabled=False):
            self.decoder: Decoder = decoder_of(unwrapped(model), dtype)

    def forward(self, tokens_B: Tensor) -> Tensor:
        with torch.autocast(self.device.type, enabled=False):
            return self.decoder(tokens_B, self.cache)

    def autocast_dtype(self) -> None:
        """None: prompts run as the model's forward pass does, decode steps on copies in `cache_dtype`."""


class PaddedBackend:
    """The model's forward pass and cache with left-padded rows, which are all admitted together."""

    continuous = False

    def __init__(self, model: nn.Module, *, dtype: torch.dtype | None) -> None:
        self.model, self.dtype = model, dtype
        self.device = next(model.parameters()).device
        self.cache: Cache = DynamicCache()
        self.mask_BL = torch.zeros(0, 0, dtype=torch.long, device=self.device)

    def prefill(self, prompts: Sequence[Tensor]) -> Prefilled:
        lengths_P = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        ids_PL, mask_PL = self.left_pad(prompts)
        cache = DynamicCache(config=unwrapped(self.model).config)
        return Prefilled(self.forward(ids_PL, mask_PL, cache), lengths_P, (cache,))

    def admit(self, prefilled: Prefilled, prompts_B: Tensor, slots_B: Tensor) -> None:
        (self.cache,) = prefilled.caches
        self.cache.batch_select_indices(prompts_B[slots_B.argsort()])
        lengths_B = prefilled.lengths_P[prompts_B[slots_B.argsort()]]
        width = int(prefilled.lengths_P.max())
        positions_L = torch.arange(width, device=self.device)
        self.mask_BL = (positions_L >= width - lengths_B[:, None]).long()

    def move(self, source_B: Tensor, target_B: Tensor, rows: int) -> None:
        keep = torch.arange(rows, device=self.device)
        keep[target_B] = source_B
        self.cache.batch_select_indices(keep)
        self.mask_BL = self.mask_BL[keep]

    def step(self, tokens_B: Tensor) -> Tensor:
        self.mask_BL = torch.cat([self.mask_BL, self.mask_BL.new_ones(len(tokens_B), 1)], dim=1)
        return self.forward(tokens_B[:, None], self.mask_BL, self.cache)

    def forward(self, ids_BL: Tensor, mask_BL: Tensor, cache: Cache) -> Tensor:
        with autocast_to(self.device, self.dtype):
            return self.model(
                input_ids=ids_BL,
                attention_mask=mask_BL,
                position_ids=(mask_BL.cumsum(-1) - 1).clamp(min=0)[:, -ids_BL.shape[1] :],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]

    def left_pad(self, prompts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        flipped = [prompt.flip(0) for prompt in prompts]
        ids_PL = pad_sequence(flipped, batch_first=True).flip(1)
        mask_PL = pad_sequence([torch.ones_like(prompt) for prompt in flipped], batch_first=True).flip(1)
        return ids_PL.to(self.device), mask_PL.to(self.device)


class MixtureBackend:
    """The mixture π^(1−c) · ref^c of policy and reference, each with its own cache. Interpolated logits are
    interpolated log-probabilities up to a constant that sampling normalises, at any temperature."""

    def __init__(
        self, policy: DecodeBackend, reference_backend: DecodeBackend, reference: Reference, coef: float
    ) -> None:
        self.policy, self.reference_backend, self.reference, self.coef = policy, reference_backend, reference, coef
        self.device = policy.device
        self.continuous = policy.continuous and reference_backend.continuous

    def prefill(self, prompts: Sequence[Tensor]) -> Prefilled:
        policy = self.policy.prefill(prompts)
        with self.reference.scoring():
            reference = self.reference_backend.prefill(prompts)
        logits_PV = self.interpolate(policy.logits_PV, reference.logits_PV)
        return Prefilled(logits_PV, policy.lengths_P, policy.caches + reference.caches)

    def admit(self, prefilled: Prefilled, prompts_B: Tensor, slots_B: Tensor) -> None:
        for backend, cache in zip((self.policy, self.reference_backend), prefilled.caches, strict=True):
            backend.admit(Prefilled(prefilled.logits_PV, prefilled.lengths_P, (cache,)), prompts_B, slots_B)

    def move(self, source_B: Tensor, target_B: Tensor, rows: int) -> None:
        self.policy.move(source_B, target_B, rows)
        self.reference_backend.move(source_B, target_B, rows)

    def step(self, tokens_B: Tensor) -> Tensor:
        policy_BV = self.policy.step(tokens_B)
        with self.reference.scoring():
            return self.interpolate(policy_BV, self.reference_backend.step(tokens_B))

    def interpolate(self, policy_BV: Tensor, reference_BV: Tensor) -> Tensor:
        return torch.lerp(policy_BV.float(), reference_BV.float(), self.coef)


@contextmanager
def autocast_to(device: torch.device, dtype: torch.dtype | None) -> Iterator[None]:
    """Autocast to `dtype` inside the block; None changes nothing."""
    if dtype is None:
        yield
    else:
        with torch.autocast(device.type, dtype):
            yield


def backend_for(model: nn.Module, *, spec: CacheSpec, dtype: torch.dtype | None) -> DecodeBackend:
    """The fastest backend that reproduces this model's logits, for rows that fit in `spec`. `model` is in eval mode."""
    inner: Any = unwrapped(model)
    config = inner.config.get_text_config()
    sharded = any(isinstance(module, FSDPModule) for module in inner.modules())
    kind = inner.device.type
    copies = torch.get_autocast_dtype(kind) if dtype is None and torch.is_autocast_enabled(kind) else dtype
    fast = is_supported(inner, windowed=is_windowed(config, spec.row)) and not sharded
    if fast and (backend := verified_backend(FastBackend, model, {"spec": spec, "dtype": copies})):
        return backend
    if dtype is torch.int8:
        name = type(inner).__name__
        raise ConfigError(f"rollout.dtype=int8: {name} has no fast decoder here; use rollout.dtype=policy")
    # A window wider than all rows has no effect. A narrower one needs its layers to build masks.
    slots = has_known_kinds(config, spec.row)
    if slots and (backend := verified_backend(SlotBackend, model, {"spec": spec, "dtype": dtype})):
        return backend
    return PaddedBackend(model, dtype=dtype)


def verified_backend(kind: type[SlotBackend], model: nn.Module, settings: Any) -> SlotBackend | None:
    """A backend of this class, or None if it does not reproduce the model's logits; checked once per model."""
    known: dict[type[SlotBackend], bool] = vars(unwrapped(model)).setdefault("decode_backends", {})
    try:
        if kind not in known:
            known[kind] = matches_model_logits(kind, model)
        return kind(model, **settings) if known[kind] else None
    except UnsupportedLayer:
        return None


@torch.no_grad()
def matches_model_logits(kind: type[SlotBackend], model: nn.Module) -> bool:
    """Whether the backend reproduces the model's logits on two rows of different length."""
    row = probe_ids(model, 10)
    rows = [row[:5], row[2:]]
    with in_eval_mode(model), comparing(model):
        backend = kind(model, spec=CacheSpec(slots=3, prompt=7, new_tokens=1, row=8), dtype=None)
        swapped = torch.tensor([1, 0], device=backend.device)
        try:
            backend.admit(backend.prefill([ids[:-1] for ids in rows]), swapped, swapped)
            logits_BV = backend.step(torch.stack([ids[-1] for ids in rows]).to(backend.device))
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
            # The model does not accept these masks or shapes.
            return False
        expected_BV = torch.stack(
            [model(input_ids=ids[None].to(backend.device), use_cache=False).logits[0, -1] for ids in rows]
        )
        bound = tolerance(expected_BV) * expected_BV.abs().max().clamp(min=1)
    return bool((logits_BV - expected_BV).abs().max() <= bound)
