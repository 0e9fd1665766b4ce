"""Packed forward passes: all tokens of a batch are one sequence without padding, and shared prefixes (a prompt and its
completions) are computed once.

All transformer layers except attention work on single tokens, so they run on the packed sequence. Attention gathers
each whole row, prefix included, into blocks of rows of similar length, causal and without a mask, so the result equals
that of separate rows. Architectures where this does not hold (recurrent, ALiBi, chunked attention) use padded rows;
`supports_packing` tests for them.

Axes: R rows, L tokens of the longest row, N packed tokens, M slots of all blocks, H heads, K head width, D model width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from postrain.models.parts import RELATIVE_TOLERANCE, trunk_output, unwrapped
from postrain.models.reference import in_eval_mode

NAME = "postrain_packed"
KNOWN_LAYERS = {"full_attention", "sliding_attention"}
# Rows with at least this fraction of the longest row's length share its attention block.
SIMILAR = 0.7


@dataclass(frozen=True)
class Packing:
    """The positions of ragged rows' tokens in one packed sequence."""

    ids_N: Tensor
    positions_N: Tensor
    """Position of each packed token in its row."""
    index_RL: Tensor
    """Index of the packed token at each position of each row; arbitrary beyond the end of a row."""
    blocks: tuple[tuple[int, int], ...]
    """Number of rows and padded length of each block."""
    gather_M: Tensor
    """Index of the packed token in each slot of the blocks, block by block and row by row."""
    inverse_N: Tensor
    """Index of a slot that holds each packed token."""


def pack(ids: Sequence[Tensor]) -> Packing:
    """Packs rows in lexicographic order, so that each shares its longest common prefix with the previous one."""
    blocks = length_buckets([len(row) for row in ids])
    padded = {row: length for rows, length in blocks for row in rows}
    starts = dict(zip(padded, accumulate(padded.values(), initial=0), strict=False))
    index_RL = torch.zeros(len(ids), max(padded.values()), dtype=torch.long)
    order = sorted(range(len(ids)), key=lambda row: ids[row].tolist())
    pieces, positions, homes = [], [], []
    used, before = 0, order[0]
    for row in order:
        shared = 0 if row == before else shared_prefix_length(ids[before], ids[row])
        new = torch.arange(shared, len(ids[row]))
        index_RL[row, :shared] = index_RL[before, :shared]
        index_RL[row, shared : len(ids[row])] = used + new - shared
        pieces.append(ids[row][shared:])
        positions.append(new)
        homes.append(starts[row] + new)
        used, before = used + len(new), row
    return Packing(
        ids_N=torch.cat(pieces),
        positions_N=torch.cat(positions),
        index_RL=index_RL,
        blocks=tuple((len(rows), length) for rows, length in blocks),
        gather_M=torch.cat([index_RL[rows, :length].flatten() for rows, length in blocks]),
        inverse_N=torch.cat(homes),
    )


def length_buckets(lengths: Sequence[int]) -> list[tuple[list[int], int]]:
    """Row indices grouped by similar length, longest first, each bucket with its padded length."""
    blocks: list[tuple[list[int], int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if blocks and lengths[row] > SIMILAR * blocks[-1][1]:
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

    `settings` of the architecture (scaling, dropout) are passed to transformers' SDPA function.
    """
    sizes = [rows * length for rows, length in packing.blocks]

    def unpacked(packed_1HNK: Tensor) -> list[Tensor]:
        gathered = packed_1HNK[0].transpose(0, 1).flatten(1).index_select(0, packing.gather_M).split(sizes)
        shape = (packed_1HNK.shape[1], packed_1HNK.shape[3])
        return [flat.view(*block, *shape).transpose(1, 2) for flat, block in zip(gathered, packing.blocks, strict=True)]

    found = []
    for query_RHLK, key_RHLK, value_RHLK in zip(unpacked(query), unpacked(key), unpacked(value), strict=True):
        mask = sliding_window_mask(query_RHLK.shape[2], sliding_window, query.device)
        settings["is_causal"] = mask is None
        block_RLHK, _ = sdpa_attention_forward(module, query_RHLK, key_RHLK, value_RHLK, mask, **settings)
        found.append(block_RLHK.flatten(0, 1))
    return torch.cat(found).index_select(0, packing.inverse_N)[None], None


def sliding_window_mask(length: int, size: int | None, device: torch.device) -> Tensor | None:
    """A causal mask with a window of `size` tokens, [1, 1, L, L]; None if plain causal attention is equal."""
    if size is None or length <= size:
        return None
    at = torch.arange(length, device=device)
    return ((at[:, None] >= at) & (at[:, None] - at < size))[None, None]


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
    device = next(model.parameters()).device
    on_device = replace(packing, gather_M=packing.gather_M.to(device), inverse_N=packing.inverse_N.to(device))
    ids_1N, positions_1N = packing.ids_N[None].to(device), packing.positions_N[None].to(device)
    with use_attention(unwrapped(model).config, NAME):
        inputs = {"input_ids": ids_1N, "position_ids": positions_1N, "use_cache": False, "packing": on_device}
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
    layers = getattr(config, "layer_types", None)
    # Without layer types, a sliding window would be applied through the mask, which packed rows do not have.
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    known = KNOWN_LAYERS.issuperset(layers) if layers else not windowed
    return inner.config._attn_implementation == "sdpa" and known


@torch.no_grad()
def _agrees(model: nn.Module) -> bool:
    inner = unwrapped(model)
    row = torch.arange(2, 12) * 7919 % inner.config.get_text_config().vocab_size
    ids = (row[:8], torch.cat([row[:3], row[8:]]))
    with in_eval_mode(model):
        packing = pack(ids)
        whole_RLD = padded_states(model, ids)
        try:
            mine_ND = packed_states(model, packing)
        except (TypeError, ValueError, RuntimeError, IndexError):  # layers that reject the argument or the shapes
            return False
    gaps = [(mine_ND[packing.index_RL[r, : len(i)]] - whole_RLD[r, : len(i)]).abs().max() for r, i in enumerate(ids)]
    tolerance = RELATIVE_TOLERANCE.get(whole_RLD.dtype, 3e-2)
    return bool(max(gaps) <= tolerance * whole_RLD.abs().max().clamp(min=1))
