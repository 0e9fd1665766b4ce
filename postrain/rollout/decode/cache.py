"""Keys and values of rows that decode together, each at a length of its own: slots that rows come to and leave.

Allocated once for all rows of a call. A Hugging Face model writes to it as to any cache, one token a row; prompts are
prefilled in a cache of their own and copied in, so that all end at the same place and what follows them begins there.
Leaves out recurrent states, which are no keys and values.

Axes: S slots, B slots in use (the first ones), P prefilled prompts, H key-value heads, L positions, K width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from postrain.rollout.groups import Groups, grouped


@dataclass(frozen=True)
class Room:
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
    groups: Groups | None = None
    """Which slots share a prompt, where it pays to know."""


class SlotLayer(DynamicLayer):
    """One layer's keys and values of all slots, [S, H, L, K]."""

    def __init__(self, keys_SHLK: Tensor, values_SHLK: Tensor, cursor: Cursor, prompt: int) -> None:
        super().__init__()
        self.keys_SHLK, self.values_SHLK, self.cursor, self.prompt = keys_SHLK, values_SHLK, cursor, prompt
        self.is_initialized = True
        self._shared: tuple[Groups, Tensor, Tensor] | None = None

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

    def shared(self, groups: Groups) -> tuple[Tensor, Tensor]:
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

    def __init__(self, room: Room, device: torch.device) -> None:
        self.rooms: list[SlotLayer] = []
        """The layers, by their own type; made when the first prompts show their shapes."""
        super().__init__(layers=[])
        self.room, self.cursor, self.changed = room, Cursor(), True
        self.start_S, self.length_S, self.family_S = torch.zeros(3, room.slots, dtype=torch.long, device=device)
        self.families = 0

    def seat(self, filled: Any, lengths_P: Tensor, which_B: Tensor, slots_B: Tensor, dtype: torch.dtype | None) -> None:
        """Copy prefilled prompts, padded on the right, into slots: `which_B` of them into `slots_B`. What they are kept
        in is said by the first that come; None is their own type."""
        pairs = [(layer.keys, layer.values) for layer in filled.layers]
        if not self.rooms:
            self.rooms = [
                SlotLayer(self._zeros(k, dtype), self._zeros(v, dtype), self.cursor, self.room.prompt) for k, v in pairs
            ]
            self.layers.extend(self.rooms)
        width, end = pairs[0][0].shape[2], self.room.prompt
        # Padding goes from behind the prompt to before it, where nobody looks.
        places_L = torch.arange(width, device=lengths_P.device)
        from_BL = (places_L - width + lengths_P[which_B][:, None]).clamp(min=0)
        for layer, pair in zip(self.rooms, pairs, strict=True):
            for room_SHLK, new_PHLK in zip((layer.keys_SHLK, layer.values_SHLK), pair, strict=True):
                new_BLHK = new_PHLK.transpose(1, 2)[which_B[:, None], from_BL]
                room_SHLK[slots_B, :, end - width : end] = new_BLHK.transpose(1, 2).to(room_SHLK.dtype)
        self.length_S[slots_B] = lengths_P[which_B]
        self.start_S[slots_B] = end - lengths_P[which_B]
        self.family_S[slots_B] = self.families + which_B
        self.families += len(lengths_P)
        self.changed = True

    def move(self, source_B: Tensor, target_B: Tensor) -> None:
        """Copy slots over others."""
        for layer in self.rooms:
            for room_SHLK in (layer.keys_SHLK, layer.values_SHLK):
                room_SHLK[target_B] = room_SHLK[source_B]
        for of_S in (self.start_S, self.length_S, self.family_S):
            of_S[target_B] = of_S[source_B]
        self.changed = True

    def advance(self, rows: int) -> None:
        """The first `rows` slots get a token; one that has ended and outgrown its room overwrites its own last."""
        cursor = self.cursor
        if self.changed:
            cursor.rows_B = torch.arange(rows, device=self.length_S.device)
            cursor.first = int(self.start_S[:rows].min())
            cursor.groups = grouped(self.family_S[:rows])
            self.changed = False
        cursor.position_B = self.length_S[:rows].clamp(max=self.room.row - 1)
        cursor.at_B = (self.start_S[:rows] + self.length_S[:rows]).clamp(max=self.room.capacity - 1)
        cursor.used = int(cursor.at_B.max()) + 1
        self.length_S[:rows] += 1

    def seen(self, window: int | None = None) -> Tensor:
        """The places each slot's next token attends to, itself included, [B, 1, 1, L]; at most `window` of them."""
        at_B1, rows = self.cursor.at_B[:, None], len(self.cursor.rows_B)
        places_L = torch.arange(self.cursor.first, self.cursor.used, device=at_B1.device)
        seen_BL = (places_L <= at_B1) & (places_L >= self.start_S[:rows, None])
        if window is not None:
            seen_BL &= places_L > at_B1 - window
        return seen_BL[:, None, None]

    def _zeros(self, like_PHLK: Tensor, dtype: torch.dtype | None) -> Tensor:
        """Not `empty`, since a masked position still takes part in a product."""
        shape = (self.room.slots, like_PHLK.shape[1], self.room.capacity, like_PHLK.shape[3])
        return like_PHLK.new_zeros(shape, dtype=dtype)
