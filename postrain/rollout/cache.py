"""A KV cache that is allocated once for prompt and completion, instead of being concatenated anew for every token."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer


class RoomyLayer(DynamicLayer):
    """A DynamicLayer whose keys and values are views of a buffer with room for `capacity` positions."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start = self.get_seq_length()
        if not start:
            self.lazy_initialization(key_states, value_states)
            self.key_room, self.value_room = self._room(key_states), self._room(value_states)
        end = start + key_states.shape[-2]
        self.key_room[:, :, start:end] = key_states
        self.value_room[:, :, start:end] = value_states
        self.keys, self.values = self.key_room[:, :, :end], self.value_room[:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        length = self.get_seq_length()
        assert self.keys is not None
        assert self.values is not None
        self.key_room, self.value_room = self._selected(self.keys, indices), self._selected(self.values, indices)
        self.keys, self.values = self.key_room[:, :, :length], self.value_room[:, :, :length]

    def _room(self, like: Tensor) -> Tensor:
        return like.new_empty(like.shape[0], like.shape[1], self.capacity, like.shape[3])

    def _selected(self, old: Tensor, rows: Tensor) -> Tensor:
        room = old.new_empty(len(rows), old.shape[1], self.capacity, old.shape[3])
        room[:, :, : old.shape[2]] = old.index_select(0, rows)
        return room


def make_cache(config: PreTrainedConfig, capacity: int) -> Cache:
    """A roomy cache where every layer attends to everything; transformers' own where some slide or are recurrent."""
    layer_types = getattr(config, "layer_types", None) or ["full_attention"]
    if set(layer_types) != {"full_attention"}:
        return DynamicCache(config=config)
    return Cache(layers=[RoomyLayer(capacity) for _ in range(config.num_hidden_layers)])
