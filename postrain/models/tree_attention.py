"""Attention over packed rows with PyTorch's flex_attention, for GPUs: one kernel, without copies of shared keys.

The packed tokens are the nodes of a prefix tree in depth-first order (packing.py): the descendants of a token follow
it, up to `ends_N`. A token attends to its ancestors and itself, so a query q sees a key k if k ≤ q < ends_N[k], and if
fewer than `window` positions lie between them. Blocks of tokens without such a pair are skipped.

The kernel is compiled, and compared with plain attention, at the first batch of a model (`works`), which takes some
ten seconds. Where that fails, and for rows that need no mask, where it would not be faster, packing.py uses SDPA.

Axes: N packed tokens, H heads, K head width, Q blocks of queries, L blocks of keys.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from postrain.hardware.environment import is_first_rank

BLOCK = 128
"""Tokens of a block of the mask."""
DEVICES = {"cuda"}
FEWEST_TOKENS = 2048
"""Packed tokens from which the kernel is used: compiling it takes seconds."""
EXACT, ROUNDED = 1e-3, 3e-2
"""Largest difference of the compiled kernel in float32 and in lower precision, relative to the largest value."""
Kind = tuple[torch.device, torch.dtype, int, int, int, bool]
"""Device, dtype, query heads, key-value heads, width of a head, and whether there is a sliding window."""


@dataclass(frozen=True, eq=False)
class Tree:
    """The prefix tree of packed tokens; its masks are made when a layer needs them."""

    positions_N: Tensor
    """Position of each token in its row, on the CPU."""
    device: torch.device
    """That of the model."""
    _masks: dict[int | None, BlockMask] = field(default_factory=dict)

    @cached_property
    def on_device(self) -> tuple[Tensor, Tensor]:
        """The positions, and the end of the descendants of each token, [N] each, on the model's device."""
        ends, path = [len(self.positions_N)] * len(self.positions_N), []
        for token, depth in enumerate(self.positions_N.tolist()):
            for closed in path[depth:]:
                ends[closed] = token
            path[depth:] = [token]
        return self.positions_N.to(self.device), torch.tensor(ends).to(self.device)

    def mask(self, window: int | None) -> BlockMask:
        """The mask of a layer with this sliding window; made once."""
        if window not in self._masks:
            self._masks[window] = block_mask(*self.on_device, window)
        return self._masks[window]


def tree_for(parameter: Tensor, positions_N: Tensor) -> Tree | None:
    """The tree, for a model with this parameter; None where flex_attention is not used."""
    used = parameter.device.type in DEVICES and not isinstance(parameter, FakeTensor)
    return Tree(positions_N, parameter.device) if used and len(positions_N) >= FEWEST_TOKENS else None


def block_mask(positions_N: Tensor, ends_N: Tensor, window: int | None) -> BlockMask:
    """The blocks with a visible pair of query and key, and those of visible pairs only."""
    count, device = len(positions_N), positions_N.device
    blocks = -(-count // BLOCK)
    padding = blocks * BLOCK - count
    starts_Q1, keys_N = (
        torch.arange(blocks, device=device)[:, None] * BLOCK,
        torch.arange(blocks * BLOCK, device=device),
    )
    # Keys of the padding have no descendants.
    last_N = F.pad(ends_N, (0, padding))
    some_QN = (keys_N < starts_Q1 + BLOCK) & (last_N > starts_Q1)
    all_QN = (keys_N <= starts_Q1) & (last_N >= starts_Q1 + BLOCK)
    if window is not None:
        at_N = F.pad(positions_N, (0, padding))
        inside_QB = (keys_N < count).view(blocks, BLOCK)
        nearest_Q1 = at_N.view(blocks, BLOCK).masked_fill(~inside_QB, count).amin(1, keepdim=True)
        some_QN &= nearest_Q1 - at_N < window
        all_QN &= at_N.view(blocks, BLOCK).amax(1, keepdim=True) - at_N < window
    some_QL = some_QN.view(blocks, blocks, BLOCK).any(-1)
    all_QL = all_QN.view(blocks, blocks, BLOCK).all(-1)
    return BlockMask.from_kv_blocks(
        *ordered(some_QL & ~all_QL),
        *ordered(all_QL),
        BLOCK_SIZE=BLOCK,
        mask_mod=visible(positions_N, ends_N, window),
        seq_lengths=(count, count),
    )


def ordered(blocks_QL: Tensor) -> tuple[Tensor, Tensor]:
    """Number of marked blocks of keys for each block of queries, and their indices, first."""
    indices_QL = blocks_QL.int().argsort(dim=-1, descending=True, stable=True)
    return blocks_QL.sum(-1).int()[None, None], indices_QL.int()[None, None]


def visible(positions_N: Tensor, ends_N: Tensor, window: int | None) -> Callable[..., Tensor]:
    """The mask of single tokens in the form of flex_attention. It captures tensors only: of a number, a kernel for any
    number of tokens would make a variable."""

    def ancestor(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < ends_N[key])

    if window is None:
        return ancestor
    limits_N = positions_N + window

    def near_ancestor(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < ends_N[key]) & (positions_N[query] < limits_N[key])

    return near_ancestor


@cache
def compiled() -> Callable[..., Any]:
    """The kernel, for any number of tokens. An error is raised instead of running without a kernel."""
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)


def attend(
    query: Tensor, key: Tensor, value: Tensor, tree: Tree, window: int | None, settings: dict[str, Any]
) -> Tensor | None:
    """Attention of packed tokens [1, H, N, K] → [1, N, H, K]; None where the kernel does not work.

    `settings` are those of transformers' attention functions.
    """
    device = query.device.type
    if torch.is_autocast_enabled(device):
        query, key, value = (each.to(torch.get_autocast_dtype(device)) for each in (query, key, value))
    kind = (query.device, query.dtype, query.shape[1], key.shape[1], key.shape[3], window is not None)
    if settings.get("dropout", 0.0) or not works(kind):
        return None
    try:
        return fused(query, key, value, tree.mask(window), settings.get("scaling")).transpose(1, 2)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as reason:  # of Dynamo: another kernel is needed, beyond its limit
        known[kind] = refuse(described(reason))
        return None


def fused(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scale: float | None = None) -> Tensor:
    """The kernel, [1, H, N, K]."""
    with torch.autocast(query.device.type, enabled=False):
        grouped = query.shape[1] != key.shape[1]
        return compiled()(query, key, value, block_mask=mask, scale=scale, enable_gqa=grouped)


known: dict[Kind, bool] = {}
"""Whether the kernel works, for the kinds of tensors that it was tried with."""


def works(kind: Kind) -> bool:
    """Whether the kernel compiles for these tensors and gives the values and gradients of plain attention."""
    if kind not in known:
        try:
            worst = error(kind)
        except Exception as reason:
            known[kind] = refuse(described(reason))
        else:
            exact = kind[1] == torch.float32 and torch.get_float32_matmul_precision() == "highest"
            known[kind] = worst <= (EXACT if exact else ROUNDED) or refuse(f"its values differ by {worst:.1g}")
    return known[kind]


def described(reason: Exception) -> str:
    """The first line of an error with its type."""
    return f"{type(reason).__name__}: {reason}".splitlines()[0]


def refuse(problem: str) -> bool:
    """Prints why SDPA is used instead; False."""
    if is_first_rank():
        print(f"note: attention of shared prompts uses SDPA: flex_attention fails here ({problem})", file=sys.stderr)
    return False


@torch.inference_mode(False)
@torch.enable_grad()
def error(kind: Kind) -> float:
    """The largest difference of outputs and gradients to plain attention in float32, relative to the largest value."""
    device, dtype, heads, shared, width, windowed = kind
    window = 64 if windowed else None
    # Three rows of 200 tokens with a common prompt of 120, and one without.
    positions_N = torch.cat([torch.arange(200), *[torch.arange(120, 200)] * 2, torch.arange(150)])
    tree, source = Tree(positions_N, device), torch.Generator().manual_seed(0)
    # Strides as in transformers.
    shapes = [(1, len(positions_N), each, width) for each in (heads, shared, shared, heads)]
    *inputs, weights = (torch.randn(shape, generator=source).to(device, dtype).transpose(1, 2) for shape in shapes)
    at_N = torch.arange(len(positions_N), device=device)
    mask_NN = visible(*tree.on_device, window)(at_N, at_N, at_N[:, None], at_N)
    mask = tree.mask(window)

    def kernel(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return fused(query, key, value, mask)

    def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask_NN, enable_gqa=heads != shared)

    with torch.autocast(device.type, enabled=False):
        mine = with_gradients(kernel, inputs, weights)
        expected = with_gradients(plain, [each.float() for each in inputs], weights.float())
    with torch.no_grad():
        kernel(*inputs)
    gaps = [(one.float() - other).abs().max() / other.abs().max() for one, other in zip(mine, expected, strict=True)]
    return float(torch.stack(gaps).max())


def with_gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor], weights: Tensor) -> list[Tensor]:
    """The function's output, and the gradients of its weighted sum."""
    leaves = [each.detach().requires_grad_() for each in inputs]
    output = function(*leaves)
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), leaves)]
