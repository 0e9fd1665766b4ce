"""The KV cache of rows that decode together, each at a length of its own: slots that rows are admitted to and evicted
from, and attention to a prompt that several rows share.

Allocated once for all rows of a call. A Hugging Face model writes to it as to any cache, one token a row; prompts are
prefilled in a cache of their own and copied in, so that all end at the same place and what follows them begins there.
A shared prompt's keys and values are read once for all of its rows, as a product of matrices, where each row for itself
would read them as vectors. Leaves out recurrent states, which are not keys and values.

Axes: S slots, B slots in use (the first ones), P prefilled prompts or prompt groups, M rows of the largest group,
N places in all groups (P · M), H key-value heads, G query heads on each, K width of a head, L positions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

# Below this many rows, or rows per prompt, shared attention costs more than it saves.
MIN_ROWS, MIN_ROWS_PER_PROMPT = 32, 2


@dataclass(frozen=True, eq=False)
class PromptGroups:
    """Rows by the prompt they share."""

    rows_N: Tensor
    """The row at each place, group by group; any row in places that are left."""
    place_B: Tensor
    """Where each row stands among them."""
    leaders_P: Tensor
    """A row of each group."""

    def gather(self, rows_BHGX: Tensor) -> Tensor:
        """[B, H, G, X] → [P, H, M · G, X]."""
        heads, queries, width = rows_BHGX.shape[1:]
        places = rows_BHGX.index_select(0, self.rows_N).view(len(self.leaders_P), -1, heads, queries, width)
        return places.transpose(1, 2).reshape(len(self.leaders_P), heads, -1, width)

    def scatter(self, groups_PHMX: Tensor, queries: int) -> Tensor:
        """[P, H, M · G, X] → [B, H, G, X]."""
        places = groups_PHMX.unflatten(2, (-1, queries)).transpose(1, 2).flatten(0, 1)
        return places.index_select(0, self.place_B)


def prompt_groups(prompt_B: Tensor) -> PromptGroups | None:
    """Rows of equal number together; None where too few share anything."""
    rows = len(prompt_B)
    _, group_B, size_P = prompt_B.unique(return_inverse=True, return_counts=True)
    largest = int(size_P.max())
    if rows < MIN_ROWS or len(size_P) * largest > 2 * rows or rows < MIN_ROWS_PER_PROMPT * len(size_P):
        return None
    order_B = group_B.argsort(stable=True)
    starts_P = size_P.cumsum(0) - size_P
    place_B = torch.empty_like(order_B)
    sorted_B = group_B[order_B]
    place_B[order_B] = sorted_B * largest + torch.arange(rows, device=order_B.device) - starts_P[sorted_B]
    rows_N = order_B.new_zeros(len(size_P) * largest)
    rows_N[place_B] = torch.arange(rows, device=order_B.device)
    return PromptGroups(rows_N, place_B, order_B[starts_P])


def shared_attention(
    query_BHGK: Tensor,
    groups: PromptGroups,
    prompt: tuple[Tensor, Tensor],
    own: tuple[Tensor, Tensor],
    mask_B11L: Tensor,
    scale: float,
) -> Tensor:
    """softmax(scale · q kᵀ + mask) v over each row's prompt and own tokens, [B, H, G, K]."""
    query_BHGK = query_BHGK * scale
    keys_PHLK, values_PHLK = prompt
    keys_BHLK, values_BHLK = own
    queries, length = query_BHGK.shape[2], keys_PHLK.shape[2]
    there = groups.scatter(groups.gather(query_BHGK) @ keys_PHLK.transpose(2, 3), queries)
    scores = torch.cat([there, query_BHGK @ keys_BHLK.transpose(2, 3)], dim=-1).add_(mask_B11L)
    shares = scores.softmax(-1, dtype=torch.float32).to(scores.dtype)
    found_PHMK = groups.gather(shares[..., :length]) @ values_PHLK
    return groups.scatter(found_PHMK, queries) + shares[..., length:] @ values_BHLK


@dataclass(frozen=True)
class CacheSpec:
    """How much a cache has to hold."""

    slots: int
    prompt: int
    """Tokens of the longest prompt."""
    new_tokens: int
    row: int
    """Tokens of the longest row, prompt and completion."""

    @property
    def capacity(self) -> int:
        """Places of a slot: prompts end, and new tokens begin, at the same one in all of them."""
        return self.prompt + self.new_tokens


@dataclass
class Cursor:
    """Where the next token of each slot in use is written; all layers share one."""

    rows_B: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    at_B: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    position_B: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    """The token's position in its own row."""
    first: int = 0
    """Where the longest prompt in use begins."""
    used: int = 0
    """Where the longest row in use ends, the next token included."""
    groups: PromptGroups | None = None
    """Which slots share a prompt, if shared attention is worth it."""


class SlotLayer(DynamicLayer):
    """One layer's keys and values of all slots, [S, H, L, K]."""

    def __init__(self, keys_SHLK: Tensor, values_SHLK: Tensor, cursor: Cursor, prompt: int) -> None:
        super().__init__()
        self.keys_SHLK, self.values_SHLK, self.cursor, self.prompt = keys_SHLK, values_SHLK, cursor, prompt
        self.is_initialized = True
        self._shared: tuple[PromptGroups, Tensor, Tensor] | None = None

    def write(self, keys_BHK: Tensor, values_BHK: Tensor) -> None:
        """Add a token to each slot in use."""
        rows, at = self.cursor.rows_B, self.cursor.at_B
        self.keys_SHLK[rows, :, at], self.values_SHLK[rows, :, at] = keys_BHK, values_BHK

    def whole(self) -> tuple[Tensor, Tensor]:
        """All keys and values in use, as views."""
        rows, first, used = len(self.cursor.rows_B), self.cursor.first, self.cursor.used
        return self.keys_SHLK[:rows, :, first:used], self.values_SHLK[:rows, :, first:used]

    def own(self) -> tuple[Tensor, Tensor]:
        """Those of the new tokens, as views."""
        rows, used = len(self.cursor.rows_B), self.cursor.used
        return self.keys_SHLK[:rows, :, self.prompt : used], self.values_SHLK[:rows, :, self.prompt : used]

    def shared(self, groups: PromptGroups) -> tuple[Tensor, Tensor]:
        """Those of each group's prompt, once; copied when the groups are new."""
        if self._shared is None or self._shared[0] is not groups:
            of_P = groups.leaders_P
            keys, values = (new[of_P, :, self.cursor.first : self.prompt] for new in (self.keys_SHLK, self.values_SHLK))
            self._shared = groups, keys, values
        return self._shared[1:]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """What transformers calls, with [B, H, 1, K]; under autocast the two need not be of one type."""
        keys_BHK, values_BHK = key_states.squeeze(2), value_states.squeeze(2)
        self.write(keys_BHK.to(self.keys_SHLK.dtype), values_BHK.to(self.values_SHLK.dtype))
        return self.whole()

    def get_seq_length(self) -> int:
        return self.cursor.used - self.cursor.first - 1


class SlotCache(Cache):
    """All layers, and where each slot's row begins and how long it is."""

    def __init__(self, spec: CacheSpec, device: torch.device) -> None:
        self.slot_layers: list[SlotLayer] = []
        """The layers, by their own type; made when the first prompts show their shapes."""
        super().__init__(layers=[])
        self.spec, self.cursor, self.changed = spec, Cursor(), True
        self.start_S, self.length_S, self.prompt_S = torch.zeros(3, spec.slots, dtype=torch.long, device=device)
        self.prompts_seen = 0

    def admit(
        self, filled: Any, lengths_P: Tensor, which_B: Tensor, slots_B: Tensor, dtype: torch.dtype | None
    ) -> None:
        """Copy prefilled prompts, padded on the right, into slots: `which_B` of them into `slots_B`. `dtype`
        of the cache is fixed by the first call; None is the dtype of the keys."""
        pairs = [(layer.keys, layer.values) for layer in filled.layers]
        if not self.slot_layers:
            self.slot_layers = [
                SlotLayer(self._zeros(k, dtype), self._zeros(v, dtype), self.cursor, self.spec.prompt) for k, v in pairs
            ]
            self.layers.extend(self.slot_layers)
        width, end = pairs[0][0].shape[2], self.spec.prompt
        # Padding goes from behind the prompt to before it, which is masked.
        places_L = torch.arange(width, device=lengths_P.device)
        from_BL = (places_L - width + lengths_P[which_B][:, None]).clamp(min=0)
        for layer, pair in zip(self.slot_layers, pairs, strict=True):
            for slots_SHLK, new_PHLK in zip((layer.keys_SHLK, layer.values_SHLK), pair, strict=True):
                new_BLHK = new_PHLK.transpose(1, 2)[which_B[:, None], from_BL]
                slots_SHLK[slots_B, :, end - width : end] = new_BLHK.transpose(1, 2).to(slots_SHLK.dtype)
        self.length_S[slots_B] = lengths_P[which_B]
        self.start_S[slots_B] = end - lengths_P[which_B]
        self.prompt_S[slots_B] = self.prompts_seen + which_B
        self.prompts_seen += len(lengths_P)
        self.changed = True

    def move(self, source_B: Tensor, target_B: Tensor) -> None:
        """Copy slots over others."""
        for layer in self.slot_layers:
            for slots_SHLK in (layer.keys_SHLK, layer.values_SHLK):
                slots_SHLK[target_B] = slots_SHLK[source_B]
        for of_S in (self.start_S, self.length_S, self.prompt_S):
            of_S[target_B] = of_S[source_B]
        self.changed = True

    def advance(self, rows: int) -> None:
        """The first `rows` slots get a token; one that has ended and outgrown its slot overwrites its own last."""
        cursor = self.cursor
        if self.changed:
            cursor.rows_B = torch.arange(rows, device=self.length_S.device)
            cursor.first = int(self.start_S[:rows].min())
            cursor.groups = prompt_groups(self.prompt_S[:rows])
            self.changed = False
        cursor.position_B = self.length_S[:rows].clamp(max=self.spec.row - 1)
        cursor.at_B = (self.start_S[:rows] + self.length_S[:rows]).clamp(max=self.spec.capacity - 1)
        cursor.used = int(cursor.at_B.max()) + 1
        self.length_S[:rows] += 1

    def attention_mask(self, window: int | None = None) -> Tensor:
        """The places each slot's next token attends to, itself included, [B, 1, 1, L]; at most `window` of them."""
        at_B1, rows = self.cursor.at_B[:, None], len(self.cursor.rows_B)
        places_L = torch.arange(self.cursor.first, self.cursor.used, device=at_B1.device)
        seen_BL = (places_L <= at_B1) & (places_L >= self.start_S[:rows, None])
        if window is not None:
            seen_BL &= places_L > at_B1 - window
        return seen_BL[:, None, None]

    def _zeros(self, like_PHLK: Tensor, dtype: torch.dtype | None) -> Tensor:
        """Not `empty`, since a masked position still takes part in a product."""
        shape = (self.spec.slots, like_PHLK.shape[1], self.spec.capacity, like_PHLK.shape[3])
        return like_PHLK.new_zeros(shape, dtype=dtype)
