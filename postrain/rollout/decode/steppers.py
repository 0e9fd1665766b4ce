"""What turns tokens into next-token logits for rows that decode together: a model with its cache.

Three ways through a model: our own forward for one token a row (lean.py); the model's own forward over a slot cache;
and rows padded on the left in the model's own cache, which works for everything and lets no row join others on the
way. Which one a model gets is decided in choice.py.

Axes: B rows in slots, P prefilled prompts, L positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import Cache, DynamicCache

from postrain.models.parts import logits_of, trunk, unwrapped
from postrain.rollout.decode.cache import Room, SlotCache
from postrain.rollout.decode.fast import Decoder, decoder_of


@dataclass(frozen=True)
class Filled:
    """Prompts that have been run, ready to be seated."""

    logits_PV: Tensor
    """Of the first new token."""
    lengths_P: Tensor
    caches: tuple[Cache, ...]
    """One a model."""

    def narrowed(self, index: int) -> Filled:
        """The one prompt at `index`; the others' keys and values are let go."""
        for cache in self.caches:
            cache.batch_select_indices(torch.tensor([index], device=self.lengths_P.device))
        return Filled(self.logits_PV[index : index + 1], self.lengths_P[index : index + 1], self.caches)


class Stepper(Protocol):
    """Next-token logits of rows in slots; the first slots are in use."""

    joins: bool
    """Whether rows can be seated while others are under way."""
    device: torch.device

    def prefill(self, prompts: Sequence[Tensor]) -> Filled:
        """Run prompts, without seating them."""
        ...

    def seat(self, filled: Filled, which_B: Tensor, slots_B: Tensor) -> None:
        """Put the prompts `which_B` into `slots_B`."""
        ...

    def move(self, source_B: Tensor, target_B: Tensor, rows: int) -> None:
        """Copy slots over others, after which the first `rows` are in use."""
        ...

    def step(self, tokens_B: Tensor) -> Tensor:
        """Give each slot in use its next token; the logits of the one after, [B, V]."""
        ...


class SlotStepper:
    """A model's own forward, each row at its own place in a slot cache."""

    joins = True
    kept_in: torch.dtype | None = None
    """The type of the cache; None is what the model's own forward gives."""

    def __init__(self, model: nn.Module, *, room: Room, dtype: torch.dtype | None) -> None:
        self.model, self.dtype = model, dtype
        self.config: Any = unwrapped(model).config.get_text_config()
        self.device = next(model.parameters()).device
        self.cache = SlotCache(room, self.device)

    def prefill(self, prompts: Sequence[Tensor]) -> Filled:
        """Padded on the right, where causal attention never looks."""
        # Any id but the pad token: transformers warns when it sees that one without an attention mask.
        filler = 1 if self.config.pad_token_id == 0 else 0
        ids_PL = pad_sequence(list(prompts), batch_first=True, padding_value=filler).to(self.device)
        lengths_P = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        cache = DynamicCache()
        with casting(self.device, self.autocast()):
            states = trunk(self.model)(input_ids=ids_PL, past_key_values=cache, use_cache=True).last_hidden_state
            last = states[torch.arange(len(prompts), device=self.device), lengths_P - 1]
            return Filled(logits_of(self.model, last), lengths_P, (cache,))

    def seat(self, filled: Filled, which_B: Tensor, slots_B: Tensor) -> None:
        self.cache.seat(filled.caches[0], filled.lengths_P, which_B, slots_B, self.kept_in)

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
            return self.cache.seen()
        window = self.config.sliding_window
        return {kind: self.cache.seen(window if kind == "sliding_attention" else None) for kind in kinds}


class LeanStepper(SlotStepper):
    """Prompts through the model, single tokens through our own forward."""

    def __init__(self, model: nn.Module, *, room: Room, dtype: torch.dtype | None) -> None:
        super().__init__(model, room=room, dtype=dtype)
        self.kept_in = dtype or next(model.parameters()).dtype
        self.decoder: Decoder = decoder_of(unwrapped(model), self.kept_in)

    def forward(self, tokens_B: Tensor) -> Tensor:
        return self.decoder(tokens_B, self.cache)

    def autocast(self) -> None:
        """Nothing: prompts are run in the weights' own type, and single tokens on copies."""


class PaddedStepper:
    """The model's own forward and cache, rows padded on the left; all are seated at once."""

    joins = False

    def __init__(self, model: nn.Module, *, dtype: torch.dtype | None) -> None:
        self.model, self.dtype = model, dtype
        self.device = next(model.parameters()).device
        self.cache: Cache = DynamicCache()
        self.mask_BL = torch.zeros(0, 0, dtype=torch.long, device=self.device)

    def prefill(self, prompts: Sequence[Tensor]) -> Filled:
        lengths_P = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        ids_PL, mask_PL = self.left_padded(prompts)
        cache = DynamicCache(config=unwrapped(self.model).config)
        return Filled(self.forward(ids_PL, mask_PL, cache), lengths_P, (cache,))

    def seat(self, filled: Filled, which_B: Tensor, slots_B: Tensor) -> None:
        (self.cache,) = filled.caches
        self.cache.batch_select_indices(which_B[slots_B.argsort()])
        lengths_B = filled.lengths_P[which_B[slots_B.argsort()]]
        width = int(filled.lengths_P.max())
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


@contextmanager
def casting(device: torch.device, dtype: torch.dtype | None) -> Iterator[None]:
    """Products in `dtype` inside the block; the surroundings' own if None."""
    if dtype is None:
        yield
    else:
        with torch.autocast(device.type, dtype):
            yield
