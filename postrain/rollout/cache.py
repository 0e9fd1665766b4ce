"""Keys and values of rows that decode together, each at a length of its own: slots that rows come to and leave.

Allocated once for all rows of a call. A Hugging Face model writes to it as to any cache, one token a row; prompts are
prefilled in a cache of their own and copied in. Leaves out recurrent states, which are no keys and values.

Axes: S slots, B slots in use (the first ones), P prefilled prompts, H key-value heads, L positions, K width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


@dataclass
class Cursor:
    """Where the next token of each slot in use is written; all layers share one."""

    rows_B: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    at_B: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    used: int = 0
    """Positions that the longest slot has, the next token included."""


class SlotLayer(DynamicLayer):
    """One layer's keys and values of all slots, [S, H, L, K]."""

    def __init__(self, keys_SHLK: Tensor, values_SHLK: Tensor, cursor: Cursor) -> None:
        super().__init__()
        self.keys_SHLK, self.values_SHLK, self.cursor = keys_SHLK, values_SHLK, cursor
        self.is_initialized = True

    def write(self, keys_BHK: Tensor, values_BHK: Tensor) -> tuple[Tensor, Tensor]:
        """Add a token to each slot in use; all their keys and values, [B, H, L, K], as views."""
        rows, at, used = self.cursor.rows_B, self.cursor.at_B, self.cursor.used
        self.keys_SHLK[rows, :, at], self.values_SHLK[rows, :, at] = keys_BHK, values_BHK
        return self.keys_SHLK[: len(rows), :, :used], self.values_SHLK[: len(rows), :, :used]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """What transformers calls, with [B, H, 1, K]; under autocast the two need not be of one type."""
        keys_BHK, values_BHK = key_states.squeeze(2), value_states.squeeze(2)
        return self.write(keys_BHK.to(self.keys_SHLK.dtype), values_BHK.to(self.values_SHLK.dtype))

    def get_seq_length(self) -> int:
        return self.cursor.used - 1


class SlotCache(Cache):
    """All layers, and how many tokens each slot holds."""

    def __init__(self, slots: int, capacity: int) -> None:
        self.rooms: list[SlotLayer] = []
        """The layers, by their own type; made when the first prompts show their shapes."""
        super().__init__(layers=[])
        self.slots, self.capacity, self.cursor = slots, capacity, Cursor()
        self.length_S = torch.zeros(slots, dtype=torch.long)

    def seat(self, filled: Any, lengths_P: Tensor, which_B: Tensor, slots_B: Tensor, dtype: torch.dtype | None) -> None:
        """Copy prefilled prompts, padded on the right, into slots: `which_B` of them into `slots_B`. What they are kept
        in is said by the first that come; None is their own type."""
        pairs = [(layer.keys, layer.values) for layer in filled.layers]
        if not self.rooms:
            self.rooms = [SlotLayer(self._room(k, dtype), self._room(v, dtype), self.cursor) for k, v in pairs]
            self.layers.extend(self.rooms)
            self.length_S = self.length_S.to(lengths_P.device)
        for layer, pair in zip(self.rooms, pairs, strict=True):
            for room_SHLK, new_PHLK in zip((layer.keys_SHLK, layer.values_SHLK), pair, strict=True):
                room_SHLK[slots_B, :, : new_PHLK.shape[2]] = new_PHLK[which_B].to(room_SHLK.dtype)
        self.length_S[slots_B] = lengths_P[which_B]

    def move(self, source_B: Tensor, target_B: Tensor) -> None:
        """Copy slots over others."""
        for layer in self.rooms:
            for room_SHLK in (layer.keys_SHLK, layer.values_SHLK):
                room_SHLK[target_B] = room_SHLK[source_B]
        self.length_S[target_B] = self.length_S[source_B]

    def advance(self, rows: int) -> None:
        """The first `rows` slots get a token; one that has ended and outgrown its room overwrites its own last."""
        self.cursor.rows_B = torch.arange(rows, device=self.length_S.device)
        self.cursor.at_B = self.length_S[:rows].clamp(max=self.capacity - 1)
        self.cursor.used = int(self.cursor.at_B.max()) + 1
        self.length_S[:rows] += 1

    def seen(self, window: int | None = None) -> Tensor:
        """The positions each slot's next token attends to, itself included, [B, 1, 1, L]; at most `window` of them."""
        at_B1 = self.cursor.at_B[:, None]
        positions_L = torch.arange(self.cursor.used, device=at_B1.device)
        seen_BL = positions_L <= at_B1
        if window is not None:
            seen_BL &= positions_L > at_B1 - window
        return seen_BL[:, None, None]

    def _room(self, like_PHLK: Tensor, dtype: torch.dtype | None) -> Tensor:
        """Zeros, since a masked position still takes part in a product."""
        shape = (self.slots, like_PHLK.shape[1], self.capacity, like_PHLK.shape[3])
        return like_PHLK.new_zeros(shape, dtype=dtype)
