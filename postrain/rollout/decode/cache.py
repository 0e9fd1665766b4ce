"""KV cache with slots for rows of different lengths (continuous batching), and attention over shared prompts.

The cache is allocated once per call. A Hugging Face model writes one token per row to it, as to any of its caches.
Prompts are prefilled in a separate cache and copied to slots such that all prompts end, and all completions start, at
the same position. Shared attention reads the keys and values of a prompt once for all rows of its group: one
matrix-matrix product instead of a matrix-vector product per row. Recurrent states are not supported.

Axes: S slots, B slots in use (the first ones), P prefilled prompts or prompt groups, M rows of the largest group,
N = P · M entries of the groups, padded to equal size, H key-value heads, G query heads per key-value head, K width of a
head, L positions.
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
    """Rows grouped by their prompt, with groups padded to equal size."""

    rows_N: Tensor
    """Row index of each entry, group by group; arbitrary in padding entries."""
    entry_B: Tensor
    """Entry of each row."""
    leaders_P: Tensor
    """One row of each group."""

    def gather(self, rows_BHGX: Tensor) -> Tensor:
        """[B, H, G, X] → [P, H, M · G, X]."""
        heads, queries, width = rows_BHGX.shape[1:]
        entries = rows_BHGX.index_select(0, self.rows_N).view(len(self.leaders_P), -1, heads, queries, width)
        return entries.transpose(1, 2).reshape(len(self.leaders_P), heads, -1, width)

    def scatter(self, groups_PHMX: Tensor, queries: int) -> Tensor:
        """[P, H, M · G, X] → [B, H, G, X]."""
        entries = groups_PHMX.unflatten(2, (-1, queries)).transpose(1, 2).flatten(0, 1)
        return entries.index_select(0, self.entry_B)


def prompt_groups(prompt_B: Tensor) -> PromptGroups | None:
    """Groups rows by prompt index; None if shared attention would cost more than it saves."""
    rows = len(prompt_B)
    _, group_B, size_P = prompt_B.unique(return_inverse=True, return_counts=True)
    largest = int(size_P.max())
    if rows < MIN_ROWS or len(size_P) * largest > 2 * rows or rows < MIN_ROWS_PER_PROMPT * len(size_P):
        return None
    order_B = group_B.argsort(stable=True)
    starts_P = size_P.cumsum(0) - size_P
    entry_B = torch.empty_like(order_B)
    sorted_B = group_B[order_B]
    entry_B[order_B] = sorted_B * largest + torch.arange(rows, device=order_B.device) - starts_P[sorted_B]
    rows_N = order_B.new_zeros(len(size_P) * largest)
    rows_N[entry_B] = torch.arange(rows, device=order_B.device)
    return PromptGroups(rows_N, entry_B, order_B[starts_P])


def shared_attention(
    query_BHGK: Tensor,
    groups: PromptGroups,
    prompt: tuple[Tensor, Tensor],
    completion: tuple[Tensor, Tensor],
    mask_B11L: Tensor,
    scale: float,
) -> Tensor:
    """softmax(scale · q kᵀ + mask) v over each row's prompt and completion, [B, H, G, K].

    `prompt` holds the keys and values of each group's prompt, [P, H, L, K]; `completion` those of each row's
    completion, [B, H, L, K].
    """
    query_BHGK = query_BHGK * scale
    keys_PHLK, values_PHLK = prompt
    keys_BHLK, values_BHLK = completion
    queries, length = query_BHGK.shape[2], keys_PHLK.shape[2]
    prompt_scores = groups.scatter(groups.gather(query_BHGK) @ keys_PHLK.transpose(2, 3), queries)
    scores = torch.cat([prompt_scores, query_BHGK @ keys_BHLK.transpose(2, 3)], dim=-1).add_(mask_B11L)
    weights = scores.softmax(-1, dtype=torch.float32).to(scores.dtype)
    prompt_output_PHMK = groups.gather(weights[..., :length]) @ values_PHLK
    return groups.scatter(prompt_output_PHMK, queries) + weights[..., length:] @ values_BHLK


@dataclass(frozen=True)
class CacheSpec:
    """Size of a slot cache."""

    slots: int
    prompt: int
    """Tokens of the longest prompt."""
    new_tokens: int
    row: int
    """Tokens of the longest row, prompt and completion."""

    @property
    def capacity(self) -> int:
        """Positions of a slot. All prompts end at position `prompt`, where all completions start."""
        return self.prompt + self.new_tokens


@dataclass
class Cursor:
    """Position of the next token of each slot in use; shared by all layers."""

    rows_B: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    index_B: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    """Index of the next token in the slot."""
    position_B: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    """Position of the next token in the row, as the model counts it."""
    start: int = 0
    """Start of the longest prompt in use, as an index in the slot."""
    end: int = 0
    """End of the longest row in use, the next token included."""
    aligned: bool = False
    """Whether the next token has the same index in all slots in use, end − 1: writing it is then a plain copy."""
    groups: PromptGroups | None = None
    """Slots that share a prompt; None without shared attention."""


class SlotLayer(DynamicLayer):
    """One layer's keys and values of all slots, [S, H, L, K]."""

    def __init__(self, keys_SHLK: Tensor, values_SHLK: Tensor, cursor: Cursor, prompt: int) -> None:
        super().__init__()
        self.keys_SHLK, self.values_SHLK, self.cursor, self.prompt = keys_SHLK, values_SHLK, cursor, prompt
        self.is_initialized = True
        self._prompts: tuple[PromptGroups, Tensor, Tensor] | None = None

    def write(self, keys_BHK: Tensor, values_BHK: Tensor) -> None:
        """Adds a token to each slot in use."""
        rows, index = self.cursor.rows_B, self.cursor.index_B
        if self.cursor.aligned:
            count, at = len(rows), self.cursor.end - 1
            self.keys_SHLK[:count, :, at], self.values_SHLK[:count, :, at] = keys_BHK, values_BHK
        else:
            self.keys_SHLK[rows, :, index], self.values_SHLK[rows, :, index] = keys_BHK, values_BHK

    def read(self) -> tuple[Tensor, Tensor]:
        """Views of all keys and values in use, [B, H, L, K]."""
        rows, start, end = len(self.cursor.rows_B), self.cursor.start, self.cursor.end
        return self.keys_SHLK[:rows, :, start:end], self.values_SHLK[:rows, :, start:end]

    def read_completions(self) -> tuple[Tensor, Tensor]:
        """Views of the keys and values of completions, [B, H, L, K]."""
        rows, end = len(self.cursor.rows_B), self.cursor.end
        return self.keys_SHLK[:rows, :, self.prompt : end], self.values_SHLK[:rows, :, self.prompt : end]

    def read_prompts(self, groups: PromptGroups) -> tuple[Tensor, Tensor]:
        """Keys and values of the prompt of each group, [P, H, L, K]; copied once per grouping."""
        if self._prompts is None or self._prompts[0] is not groups:
            rows_P, start = groups.leaders_P, self.cursor.start
            keys, values = (slots[rows_P, :, start : self.prompt] for slots in (self.keys_SHLK, self.values_SHLK))
            self._prompts = groups, keys, values
        return self._prompts[1:]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The interface of transformers' caches, with states [B, H, 1, K]."""
        # Under autocast, keys and values may differ in dtype.
        keys_BHK, values_BHK = key_states.squeeze(2), value_states.squeeze(2)
        self.write(keys_BHK.to(self.keys_SHLK.dtype), values_BHK.to(self.values_SHLK.dtype))
        return self.read()

    def get_seq_length(self) -> int:
        return self.cursor.end - self.cursor.start - 1


class SlotCache(Cache):
    """The layers of all slots, with the start, length and prompt of the row in each slot."""

    def __init__(self, spec: CacheSpec, device: torch.device) -> None:
        self.slot_layers: list[SlotLayer] = []
        """The entries of `layers`, typed; created at the first `admit`, which gives their shapes."""
        super().__init__(layers=[])
        self.spec, self.cursor, self.changed = spec, Cursor(), True
        self.start_S, self.length_S, self.prompt_S = torch.zeros(3, spec.slots, dtype=torch.long, device=device)
        self.prompts_admitted = 0

    def admit(
        self, filled: Any, lengths_P: Tensor, prompts_B: Tensor, slots_B: Tensor, dtype: torch.dtype | None
    ) -> None:
        """Copies prefilled prompts of indices `prompts_B`, padded on the right, to slots `slots_B`.

        The first call fixes the `dtype` of the cache; None is the dtype of the keys.
        """
        pairs = [(layer.keys, layer.values) for layer in filled.layers]
        if not self.slot_layers:
            self.slot_layers = [
                SlotLayer(self._zeros(k, dtype), self._zeros(v, dtype), self.cursor, self.spec.prompt) for k, v in pairs
            ]
            self.layers.extend(self.slot_layers)
        width, end = pairs[0][0].shape[2], self.spec.prompt
        # Right padding becomes left padding, which is masked.
        positions_L = torch.arange(width, device=lengths_P.device)
        source_BL = (positions_L - width + lengths_P[prompts_B][:, None]).clamp(min=0)
        for layer, pair in zip(self.slot_layers, pairs, strict=True):
            for slots_SHLK, new_PHLK in zip((layer.keys_SHLK, layer.values_SHLK), pair, strict=True):
                new_BLHK = new_PHLK.transpose(1, 2)[prompts_B[:, None], source_BL]
                slots_SHLK[slots_B, :, end - width : end] = new_BLHK.transpose(1, 2).to(slots_SHLK.dtype)
        self.length_S[slots_B] = lengths_P[prompts_B]
        self.start_S[slots_B] = end - lengths_P[prompts_B]
        self.prompt_S[slots_B] = self.prompts_admitted + prompts_B
        self.prompts_admitted += len(lengths_P)
        self.changed = True

    def move(self, source_B: Tensor, target_B: Tensor) -> None:
        """Copies slots `source_B` over `target_B`."""
        for layer in self.slot_layers:
            for slots_SHLK in (layer.keys_SHLK, layer.values_SHLK):
                slots_SHLK[target_B] = slots_SHLK[source_B]
        for of_S in (self.start_S, self.length_S, self.prompt_S):
            of_S[target_B] = of_S[source_B]
        self.changed = True

    def advance(self, rows: int) -> None:
        """Advances the first `rows` slots by one token. Ended rows stay at the last position of a full slot."""
        cursor = self.cursor
        cursor.position_B = self.length_S[:rows].clamp(max=self.spec.row - 1)
        cursor.index_B = (self.start_S[:rows] + self.length_S[:rows]).clamp(max=self.spec.capacity - 1)
        if self.changed:
            # The only values that the host reads: reading one waits for the device.
            cursor.rows_B = torch.arange(rows, device=self.length_S.device)
            cursor.start, cursor.end = int(self.start_S[:rows].min()), int(cursor.index_B.max()) + 1
            cursor.aligned = int(cursor.index_B.min()) == cursor.end - 1
            cursor.groups = prompt_groups(self.prompt_S[:rows])
            self.changed = False
        else:
            cursor.end = min(cursor.end + 1, self.spec.capacity)
        self.length_S[:rows] += 1

    def attention_mask(self, window: int | None = None) -> Tensor:
        """True at positions that the next token of each slot attends to, itself included, [B, 1, 1, L].

        With `window`, at most that many.
        """
        index_B1, rows = self.cursor.index_B[:, None], len(self.cursor.rows_B)
        positions_L = torch.arange(self.cursor.start, self.cursor.end, device=index_B1.device)
        mask_BL = (positions_L <= index_B1) & (positions_L >= self.start_S[:rows, None])
        if window is not None:
            mask_BL &= positions_L > index_B1 - window
        return mask_BL[:, None, None]

    def _zeros(self, like_PHLK: Tensor, dtype: torch.dtype | None) -> Tensor:
        # Not `empty`: masked positions enter a product with weight 0, and 0 · NaN is NaN.
        shape = (self.spec.slots, like_PHLK.shape[1], self.spec.capacity, like_PHLK.shape[3])
        return like_PHLK.new_zeros(shape, dtype=dtype)
