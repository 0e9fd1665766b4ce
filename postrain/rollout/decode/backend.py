"""What turns tokens into next-token logits for rows that decode together: a model with its KV cache.

Three backends: our own forward for one token a row (fast.py); the model's own forward over a slot cache; and rows
padded on the left in the model's own cache, which works for everything and admits no row while others are under way.
A model gets the fastest that gives its own logits, tried once on two short rows. Our own forward reads plain weights in
one piece, so sharded models and mixed precision go through the model itself.

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

from postrain.models.parts import RELATIVE_TOLERANCE, logits_of, trunk, unwrapped
from postrain.models.reference import Reference, in_eval_mode
from postrain.rollout.decode.cache import CacheSpec, SlotCache
from postrain.rollout.decode.fast import Decoder, decoder_of, is_supported
from postrain.rollout.decode.weights import UnsupportedLayer

KNOWN_LAYERS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class Prefilled:
    """Prompts that have been run, ready to be admitted."""

    logits_PV: Tensor
    """Of the first new token."""
    lengths_P: Tensor
    caches: tuple[Cache, ...]
    """One a model."""

    def narrowed(self, index: int) -> Prefilled:
        """The one prompt at `index`; the others' keys and values are let go."""
        for cache in self.caches:
            cache.batch_select_indices(torch.tensor([index], device=self.lengths_P.device))
        return Prefilled(self.logits_PV[index : index + 1], self.lengths_P[index : index + 1], self.caches)


class DecodeBackend(Protocol):
    """Next-token logits of rows in slots; the first slots are in use."""

    continuous: bool
    """Whether rows can be admitted while others are decoding (continuous batching)."""
    device: torch.device

    def prefill(self, prompts: Sequence[Tensor]) -> Prefilled:
        """Run prompts, without admitting them."""
        ...

    def admit(self, prefilled: Prefilled, which_B: Tensor, slots_B: Tensor) -> None:
        """Put the prompts `which_B` into `slots_B`."""
        ...

    def move(self, source_B: Tensor, target_B: Tensor, rows: int) -> None:
        """Copy slots over others, after which the first `rows` are in use."""
        ...

    def step(self, tokens_B: Tensor) -> Tensor:
        """Give each slot in use its next token; the logits of the one after, [B, V]."""
        ...


class SlotBackend:
    """A model's own forward, each row at its own place in a slot cache."""

    continuous = True
    cache_dtype: torch.dtype | None = None
    """The type of the cache; None is what the model's own forward gives."""

    def __init__(self, model: nn.Module, *, spec: CacheSpec, dtype: torch.dtype | None) -> None:
        self.model, self.dtype = model, dtype
        self.config: Any = unwrapped(model).config.get_text_config()
        self.device = next(model.parameters()).device
        self.cache = SlotCache(spec, self.device)

    def prefill(self, prompts: Sequence[Tensor]) -> Prefilled:
        """Padded on the right, where causal attention never looks."""
        # Any id but the pad token: transformers warns when it sees that one without an attention mask.
        filler = 1 if self.config.pad_token_id == 0 else 0
        ids_PL = pad_sequence(list(prompts), batch_first=True, padding_value=filler).to(self.device)
        lengths_P = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        cache = DynamicCache()
        with casting(self.device, self.autocast()):
            states = trunk(self.model)(input_ids=ids_PL, past_key_values=cache, use_cache=True).last_hidden_state
            last = states[torch.arange(len(prompts), device=self.device), lengths_P - 1]
            return Prefilled(logits_of(self.model, last), lengths_P, (cache,))

    def admit(self, prefilled: Prefilled, which_B: Tensor, slots_B: Tensor) -> None:
        self.cache.admit(prefilled.caches[0], prefilled.lengths_P, which_B, slots_B, self.cache_dtype)

    def move(self, source_B: Tensor, target_B: Tensor, rows: int) -> None:
        self.cache.move(source_B, target_B)

    def step(self, tokens_B: Tensor) -> Tensor:
        self.cache.advance(len(tokens_B))
        with casting(self.device, self.autocast()):
            return self.forward(tokens_B)

    def forward(self, tokens_B: Tensor) -> Tensor:
        found = self.model(
            input_ids=tokens_B[:, None],
            attention_mask=self.masks(),
            position_ids=self.cache.cursor.position_B[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        return found.logits[:, -1]

    def autocast(self) -> torch.dtype | None:
        """What the model's own forward is to compute in, where that is not what it does anyhow."""
        return self.dtype

    def masks(self) -> Any:
        """One mask, or one for each kind of layer where some look back a window only."""
        kinds = set(getattr(self.config, "layer_types", None) or ())
        if "sliding_attention" not in kinds:
            return self.cache.attention_mask()
        window = self.config.sliding_window
        return {kind: self.cache.attention_mask(window if kind == "sliding_attention" else None) for kind in kinds}


class FastBackend(SlotBackend):
    """Prompts through the model, single tokens through our own forward."""

    def __init__(self, model: nn.Module, *, spec: CacheSpec, dtype: torch.dtype | None) -> None:
        super().__init__(model, spec=spec, dtype=dtype)
        self.cache_dtype = dtype or next(model.parameters()).dtype
        self.decoder: Decoder = decoder_of(unwrapped(model), self.cache_dtype)

    def forward(self, tokens_B: Tensor) -> Tensor:
        return self.decoder(tokens_B, self.cache)

    def autocast(self) -> None:
        """Nothing: prompts are run in the weights' own type, and single tokens on copies."""


class PaddedBackend:
    """The model's own forward and cache, rows padded on the left; all are admitted at once."""

    continuous = False

    def __init__(self, model: nn.Module, *, dtype: torch.dtype | None) -> None:
        self.model, self.dtype = model, dtype
        self.device = next(model.parameters()).device
        self.cache: Cache = DynamicCache()
        self.mask_BL = torch.zeros(0, 0, dtype=torch.long, device=self.device)

    def prefill(self, prompts: Sequence[Tensor]) -> Prefilled:
        lengths_P = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        ids_PL, mask_PL = self.left_padded(prompts)
        cache = DynamicCache(config=unwrapped(self.model).config)
        return Prefilled(self.forward(ids_PL, mask_PL, cache), lengths_P, (cache,))

    def admit(self, prefilled: Prefilled, which_B: Tensor, slots_B: Tensor) -> None:
        (self.cache,) = prefilled.caches
        self.cache.batch_select_indices(which_B[slots_B.argsort()])
        lengths_B = prefilled.lengths_P[which_B[slots_B.argsort()]]
        width = int(prefilled.lengths_P.max())
        places_L = torch.arange(width, device=self.device)
        self.mask_BL = (places_L >= width - lengths_B[:, None]).long()

    def move(self, source_B: Tensor, target_B: Tensor, rows: int) -> None:
        keep = torch.arange(rows, device=self.device)
        keep[target_B] = source_B
        self.cache.batch_select_indices(keep)
        self.mask_BL = self.mask_BL[keep]

    def step(self, tokens_B: Tensor) -> Tensor:
        self.mask_BL = torch.cat([self.mask_BL, self.mask_BL.new_ones(len(tokens_B), 1)], dim=1)
        return self.forward(tokens_B[:, None], self.mask_BL, self.cache)

    def forward(self, ids_BL: Tensor, mask_BL: Tensor, cache: Cache) -> Tensor:
        with casting(self.device, self.dtype):
            return self.model(
                input_ids=ids_BL,
                attention_mask=mask_BL,
                position_ids=(mask_BL.cumsum(-1) - 1).clamp(min=0)[:, -ids_BL.shape[1] :],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]

    def left_padded(self, prompts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        flipped = [prompt.flip(0) for prompt in prompts]
        ids_PL = pad_sequence(flipped, batch_first=True).flip(1)
        mask_PL = pad_sequence([torch.ones_like(prompt) for prompt in flipped], batch_first=True).flip(1)
        return ids_PL.to(self.device), mask_PL.to(self.device)


class MixtureBackend:
    """Policy and reference side by side, each with its own cache: π^(1−c) · ref^c, up to the constant that drawing
    takes out. Mixing the logits mixes the log-probabilities, at any temperature."""

    def __init__(
        self, policy: DecodeBackend, reference_backend: DecodeBackend, reference: Reference, coef: float
    ) -> None:
        self.policy, self.reference_backend, self.reference, self.coef = policy, reference_backend, reference, coef
        self.device = policy.device
        self.continuous = policy.continuous and reference_backend.continuous

    def prefill(self, prompts: Sequence[Tensor]) -> Prefilled:
        mine = self.policy.prefill(prompts)
        with self.reference.scoring():
            other = self.reference_backend.prefill(prompts)
        return Prefilled(self.mixed(mine.logits_PV, other.logits_PV), mine.lengths_P, mine.caches + other.caches)

    def admit(self, prefilled: Prefilled, which_B: Tensor, slots_B: Tensor) -> None:
        for backend, cache in zip((self.policy, self.reference_backend), prefilled.caches, strict=True):
            backend.admit(Prefilled(prefilled.logits_PV, prefilled.lengths_P, (cache,)), which_B, slots_B)

    def move(self, source_B: Tensor, target_B: Tensor, rows: int) -> None:
        self.policy.move(source_B, target_B, rows)
        self.reference_backend.move(source_B, target_B, rows)

    def step(self, tokens_B: Tensor) -> Tensor:
        mine_BV = self.policy.step(tokens_B)
        with self.reference.scoring():
            return self.mixed(mine_BV, self.reference_backend.step(tokens_B))

    def mixed(self, mine_BV: Tensor, theirs_BV: Tensor) -> Tensor:
        return torch.lerp(mine_BV.float(), theirs_BV.float(), self.coef)


@contextmanager
def casting(device: torch.device, dtype: torch.dtype | None) -> Iterator[None]:
    """Products in `dtype` inside the block; the surroundings' own if None."""
    if dtype is None:
        yield
    else:
        with torch.autocast(device.type, dtype):
            yield


def backend_for(model: nn.Module, *, spec: CacheSpec, dtype: torch.dtype | None) -> DecodeBackend:
    """The fastest backend that gives this model's logits, for rows that fit in `spec`; `model` in eval mode."""
    inner: Any = unwrapped(model)
    # A sliding window without layer_types needs masks that are not built here; one wider than all rows has no effect.
    config = inner.config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    narrow = window is not None and window < spec.row
    if not hasattr(inner, "decode_backends"):
        inner.decode_backends = {}
    settings = {"spec": spec, "dtype": dtype}
    whole = not any(isinstance(module, FSDPModule) for module in inner.modules())
    plain = whole and not torch.is_autocast_enabled(inner.device.type) and not (narrow and layers != {"full_attention"})
    if plain and is_supported(inner) and (found := verified(FastBackend, model, settings)):
        return found
    if KNOWN_LAYERS.issuperset(layers) and (layers or not narrow) and (found := verified(SlotBackend, model, settings)):
        return found
    return PaddedBackend(model, dtype=dtype)


def verified(kind: type[SlotBackend], model: nn.Module, settings: Any) -> SlotBackend | None:
    """The backend, if it reproduces the model's logits; checked once per model."""
    known: dict[type[SlotBackend], bool] = unwrapped(model).decode_backends  # pyright: ignore[reportAssignmentType]
    try:
        if kind not in known:
            known[kind] = matches_model_logits(kind, model)
        return kind(model, **settings) if known[kind] else None
    except UnsupportedLayer:
        return None


@torch.no_grad()
def matches_model_logits(kind: type[SlotBackend], model: nn.Module) -> bool:
    """Whether the backend reproduces the model's logits on two rows of different length."""
    row = torch.arange(2, 12) * 7919 % unwrapped(model).config.get_text_config().vocab_size
    rows = [row[:5], row[2:]]
    with in_eval_mode(model):
        backend = kind(model, spec=CacheSpec(slots=3, prompt=7, new_tokens=1, row=8), dtype=None)
        turned = torch.tensor([1, 0], device=backend.device)
        try:
            backend.admit(backend.prefill([ids[:-1] for ids in rows]), turned, turned)
            mine_BV = backend.step(torch.stack([ids[-1] for ids in rows]).to(backend.device))
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):  # what refuses masks or shapes
            return False
        whole_BV = torch.stack(
            [model(input_ids=ids[None].to(backend.device), use_cache=False).logits[0, -1] for ids in rows]
        )
    tolerance = RELATIVE_TOLERANCE.get(whole_BV.dtype, 3e-2)
    return bool((mine_BV - whole_BV).abs().max() <= tolerance * whole_BV.abs().max().clamp(min=1))
