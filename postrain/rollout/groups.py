"""Attention of single tokens to a prompt that several rows share: the prompt's keys and values are read once for all of
them, as a product of matrices, where each row for itself would read them as vectors.

Axes: B rows, P groups, M rows of the largest group, H key-value heads, G query heads on each, K width of a head,
L positions (of the prompt, then of the row's own tokens), N places in all groups (P · M).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Below this many rows, or this many a prompt, the few more operations cost more than they save.
WORTH_ROWS, WORTH_SHARE = 32, 2


@dataclass(frozen=True, eq=False)
class Groups:
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


def grouped(family_B: Tensor) -> Groups | None:
    """Rows of equal number together; None where too few share anything."""
    rows = len(family_B)
    _, group_B, size_P = family_B.unique(return_inverse=True, return_counts=True)
    largest = int(size_P.max())
    if rows < WORTH_ROWS or len(size_P) * largest > 2 * rows or rows < WORTH_SHARE * len(size_P):
        return None
    order_B = group_B.argsort(stable=True)
    starts_P = size_P.cumsum(0) - size_P
    place_B = torch.empty_like(order_B)
    sorted_B = group_B[order_B]
    place_B[order_B] = sorted_B * largest + torch.arange(rows, device=order_B.device) - starts_P[sorted_B]
    rows_N = order_B.new_zeros(len(size_P) * largest)
    rows_N[place_B] = torch.arange(rows, device=order_B.device)
    return Groups(rows_N, place_B, order_B[starts_P])


def shared_attention(
    query_BHGK: Tensor,
    groups: Groups,
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
