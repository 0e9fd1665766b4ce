"""Packed forward passes: all tokens of a batch are one sequence without padding, and shared prefixes (a prompt and its
completions) are computed once.

All transformer layers except attention work on single tokens, so they run on the packed sequence. For attention, rows
are gathered into blocks of similar shape. A row that shares at least half of its tokens has queries for its own tokens
only, with a mask over the keys of the whole row: a prompt is read, not computed, once per completion. Other rows are
whole, causal and without a mask. The result equals that of separate rows. Architectures where this does not hold
(recurrent, ALiBi, chunked attention) use padded rows; `supports_packing` tests for them.

Axes: R rows, L tokens of the longest row, N packed tokens, M slots of all blocks, H heads, Q queries and L keys of each
row of a block, K head width, D model width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from postrain.models import tree_attention
from postrain.models.attention_kinds import SLIDING, has_known_kinds
from postrain.models.parts import comparing, probe_ids, tolerance, trunk_output, unwrapped
from postrain.models.reference import in_eval_mode
from postrain.models.tree_attention import Tree

NAME = "postrain_packed"
# Rows with at least this fraction of the keys, and of the queries, of the longest row share its attention block.
SIMILAR, SIMILAR_QUERIES = 0.7, 0.5


@dataclass(frozen=True)
class Block:
    """Rows whose attention is computed together."""

    first_R: Tensor
    """Position of the first query of each row: 0, or the number of tokens shared with another row."""
    queries: int
    """Number of queries of a row, padded."""
    keys: int
    """Number of keys of a row, padded."""

    def is_masked(self, window: int | None) -> bool:
        """Whether attention differs from plain causal attention. With `window`, a token attends to that many tokens,
        itself included."""
        return self.queries != self.keys or (window is not None and self.keys > window)

    def mask(self, window: int | None = None) -> Tensor | None:
        """True where a query attends to a key, [R, 1, Q, L]; None if plain causal attention is equal."""
        if not self.is_masked(window):
            return None
        device = self.first_R.device
        # Queries of the padding have a position in the row too: without a key their gradients would be NaN.
        at_RQ = (self.first_R[:, None] + torch.arange(self.queries, device=device)).clamp(max=self.keys - 1)
        distance_R1QL = at_RQ[:, None, :, None] - torch.arange(self.keys, device=device)
        mask_R1QL = distance_R1QL >= 0
        return mask_R1QL if window is None else mask_R1QL & (distance_R1QL < window)


@dataclass(frozen=True)
class Packing:
    """The positions of ragged rows' tokens in one packed sequence."""

    ids_N: Tensor
    positions_N: Tensor
    """Position of each packed token in its row."""
    index_RL: Tensor
    """Index of the packed token at each position of each row; arbitrary beyond the end of a row."""
    blocks: tuple[Block, ...]
    queries_M: Tensor
    """Index of the packed token of each query, block by block and row by row."""
    keys_M: Tensor
    """Index of the packed token of each key, block by block and row by row."""
    inverse_N: Tensor
    """Index of a query of each packed token."""
    tree: Tree | None = None
    """For attention with one kernel (tree_attention.py); None where blocks are used."""

    def to(self, device: torch.device) -> Packing:
        """The same packing for attention on a device; index_RL stays where it is."""
        blocks = tuple(replace(block, first_R=block.first_R.to(device)) for block in self.blocks)
        names = ("ids_N", "positions_N", "queries_M", "keys_M", "inverse_N")
        return replace(self, blocks=blocks, **{name: getattr(self, name).to(device) for name in names})


def pack(ids: Sequence[Tensor]) -> Packing:
    """Packs rows in lexicographic order, so that each shares its longest common prefix with the previous one."""
    lengths = [len(row) for row in ids]
    index_RL = torch.zeros(len(ids), max(lengths), dtype=torch.long)
    order = sorted(range(len(ids)), key=lambda row: ids[row].tolist())
    shared = [0] * len(ids)
    used, before = 0, order[0]
    for row in order:
        shared[row] = 0 if row == before else shared_prefix_length(ids[before], ids[row])
        index_RL[row, : shared[row]] = index_RL[before, : shared[row]]
        index_RL[row, shared[row] : lengths[row]] = torch.arange(used, used + lengths[row] - shared[row])
        used, before = used + lengths[row] - shared[row], row
    blocks, queries, keys, own = [], [], [], []
    for rows, block in attention_blocks(lengths, shared):
        at_RQ = block.first_R[:, None] + torch.arange(block.queries)
        lengths_R, shared_R = (torch.tensor([values[row] for row in rows]) for values in (lengths, shared))
        own.append(((at_RQ >= shared_R[:, None]) & (at_RQ < lengths_R[:, None])).flatten())
        queries.append(index_RL[rows].gather(1, at_RQ.clamp(max=index_RL.shape[1] - 1)).flatten())
        keys.append(index_RL[rows, : block.keys].flatten())
        blocks.append(block)
    queries_M, slots_N = torch.cat(queries), torch.cat(own).nonzero().squeeze(1)
    return Packing(
        ids_N=torch.cat([ids[row][shared[row] :] for row in order]),
        positions_N=torch.cat([torch.arange(shared[row], lengths[row]) for row in order]),
        index_RL=index_RL,
        blocks=tuple(blocks),
        queries_M=queries_M,
        keys_M=torch.cat(keys),
        inverse_N=torch.empty_like(slots_N).scatter_(0, queries_M[slots_N], slots_N),
    )


def attention_blocks(lengths: Sequence[int], shared: Sequence[int]) -> Iterator[tuple[list[int], Block]]:
    """Blocks and their rows, from each row's length and the number of tokens that it shares with an earlier row. A row
    without tokens of its own is in no block."""
    queries = [
        length if 2 * before < length else length - before for length, before in zip(lengths, shared, strict=True)
    ]
    whole = [row for row, count in enumerate(queries) if count == lengths[row]]
    for bucket, longest in length_buckets([lengths[row] for row in whole]):
        yield [whole[each] for each in bucket], Block(torch.zeros(len(bucket), dtype=torch.long), longest, longest)
    sharing = [row for row, count in enumerate(queries) if 0 < count < lengths[row]]
    for bucket, longest in length_buckets([lengths[row] for row in sharing]):
        similar = [sharing[each] for each in bucket]
        for part, count in length_buckets([queries[row] for row in similar], SIMILAR_QUERIES):
            rows = [similar[each] for each in part]
            yield rows, Block(torch.tensor([shared[row] for row in rows]), count, longest)


def length_buckets(lengths: Sequence[int], similar: float = SIMILAR) -> list[tuple[list[int], int]]:
    """Row indices grouped by similar length, longest first, each bucket with its padded length."""
    blocks: list[tuple[list[int], int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if blocks and lengths[row] > similar * blocks[-1][1]:
            blocks[-1][0].append(row)
        else:
            blocks.append(([row], lengths[row]))
    return blocks


def shared_prefix_length(one: Tensor, other: Tensor) -> int:
    """Number of tokens in the common prefix of two rows."""
    both = min(len(one), len(other))
    return int((one[:both] == other[:both]).long().cumprod(0).sum())


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing,
    sliding_window: int | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Attention function for transformers: query, key and value [1, H, N, K] → [1, N, H, K].

    `settings` of the architecture (scaling, dropout) are passed to transformers' SDPA function. Raises ValueError for a
    layer that would apply its sliding window through the mask.
    """
    if sliding_window is None and _has_window(module):
        raise ValueError(f"{type(module).__name__} does not pass its sliding window to the attention function")
    if query.device.type == "cpu" and (torch.is_autocast_enabled("cpu") or query.dtype is torch.bfloat16):
        # PyTorch's CPU kernels take twice as long in bf16 as in float32 (backward pass, AVX512-BF16).
        wide = (query.float(), key.float(), value.float(), attention_mask)
        with torch.autocast("cpu", enabled=False):
            output, _ = packed_attention(module, *wide, packing=packing, sliding_window=sliding_window, **settings)
        return output.to(value.dtype), None
    if packing.tree is not None and any(block.is_masked(sliding_window) for block in packing.blocks):
        found = tree_attention.attend(query, key, value, packing.tree, sliding_window, settings)
        if found is not None:
            return found, None

    def unpacked(packed_1HNK: Tensor, index_M: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        gathered = packed_1HNK[0].transpose(0, 1).flatten(1).index_select(0, index_M)
        shapes = [(len(block.first_R), length) for block, length in zip(packing.blocks, lengths, strict=True)]
        pieces = gathered.split([rows * length for rows, length in shapes])
        heads = (packed_1HNK.shape[1], packed_1HNK.shape[3])
        return [piece.view(*shape, *heads).transpose(1, 2) for piece, shape in zip(pieces, shapes, strict=True)]

    queries = unpacked(query, packing.queries_M, [block.queries for block in packing.blocks])
    keys, values = (unpacked(each, packing.keys_M, [block.keys for block in packing.blocks]) for each in (key, value))
    found = []
    for block, query_RHQK, key_RHLK, value_RHLK in zip(packing.blocks, queries, keys, values, strict=True):
        mask = block.mask(sliding_window)
        if mask is not None and query.device.type == "cpu":
            # transformers repeats the keys of grouped-query attention if there is a mask; a CPU need not.
            scale, dropout = settings.get("scaling"), settings.get("dropout", 0.0)
            inputs = {"attn_mask": mask, "dropout_p": dropout, "scale": scale, "enable_gqa": True}
            block_RQHK = F.scaled_dot_product_attention(query_RHQK, key_RHLK, value_RHLK, **inputs).transpose(1, 2)
        else:
            settings["is_causal"] = mask is None
            block_RQHK, _ = sdpa_attention_forward(module, query_RHQK, key_RHLK, value_RHLK, mask, **settings)
        found.append(block_RQHK.flatten(0, 1))
    return torch.cat(found).index_select(0, packing.inverse_N)[None], None


def _has_window(layer: Any) -> bool:
    """Whether the config gives an attention layer a sliding window."""
    types, index = getattr(getattr(layer, "config", None), "layer_types", None), getattr(layer, "layer_idx", None)
    return bool(types) and index is not None and types[index] == SLIDING


def no_mask(*_: Any, **__: Any) -> None:
    """No mask: packed attention is causal."""


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, no_mask)


@contextmanager
def use_attention(config: Any, name: str) -> Iterator[None]:
    """Makes transformers call this attention function inside the block, such as `packed_attention`."""
    previous = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = previous


def hidden_states(model: nn.Module, ids: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The trunk's hidden state of every token, [N, D], and the index of each row's tokens in it, [R, L] on the CPU.

    Packed where that saves tokens and the architecture supports it; otherwise right-padded, where causal attention
    ignores the padding.
    """
    rows, longest = len(ids), max(map(len, ids))
    if rows > 1 and supports_packing(model):
        packing = pack(ids)
        if len(packing.ids_N) < rows * longest:
            return packed_states(model, packing), packing.index_RL
    states_RLD = padded_states(model, ids)
    return states_RLD.flatten(0, 1), torch.arange(rows * longest).view(rows, longest)


def packed_states(model: nn.Module, packing: Packing) -> Tensor:
    """One forward over packed tokens, [N, D]."""
    parameter = next(model.parameters())
    packing = replace(packing.to(parameter.device), tree=tree_attention.tree_for(parameter, packing.positions_N))
    with use_attention(unwrapped(model).config, NAME):
        tokens = {"input_ids": packing.ids_N[None], "position_ids": packing.positions_N[None]}
        inputs = {**tokens, "use_cache": False, "packing": packing}
        found = trunk_output(model, **inputs)
    return found.last_hidden_state[0]


def padded_states(model: nn.Module, ids: Sequence[Tensor]) -> Tensor:
    """One forward over right-padded rows, [R, L, D]."""
    # Not the pad token: transformers warns about it without an attention mask.
    filler = 1 if unwrapped(model).config.get_text_config().pad_token_id == 0 else 0
    ids_RL = pad_sequence(list(ids), batch_first=True, padding_value=filler).to(next(model.parameters()).device)
    return trunk_output(model, input_ids=ids_RL, use_cache=False).last_hidden_state


def supports_packing(model: nn.Module) -> bool:
    """Whether packed rows give the same states as separate rows; tested once on two short rows."""
    inner: Any = unwrapped(model)
    if not hasattr(inner, "packing_supported"):
        inner.packing_supported = is_packable(inner) and _agrees(model)
    return inner.packing_supported


def is_packable(inner: Any) -> bool:
    config = inner.config.get_text_config()
    return inner.config._attn_implementation == "sdpa" and has_known_kinds(config)


@torch.no_grad()
def _agrees(model: nn.Module) -> bool:
    row = probe_ids(model, 10)
    ids = (row[:8], torch.cat([row[:3], row[8:]]))
    with in_eval_mode(model), comparing(model):
        packing = pack(ids)
        whole_RLD = padded_states(model, ids)
        try:
            mine_ND = packed_states(model, packing)
        except (TypeError, ValueError, RuntimeError, IndexError):  # layers that reject the argument or the shapes
            return False
        bound = tolerance(whole_RLD) * whole_RLD.abs().max().clamp(min=1)
    gaps = [(mine_ND[packing.index_RL[r, : len(i)]] - whole_RLD[r, : len(i)]).abs().max() for r, i in enumerate(ids)]
    return bool(max(gaps) <= bound)
