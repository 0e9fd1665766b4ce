"""Micro-batches: rows split by a budget of tokens, and their results joined in row order. They change no result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import reduce
from operator import add
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from postrain.models.scoring import ReferenceScores, Scores
from postrain.types import Batch, Rows

Found = TypeVar("Found", Scores, ReferenceScores, Tensor)
SomeBatch = TypeVar("SomeBatch", bound=Batch)


def micro_batches(costs: Sequence[int], budget: int, groups: Sequence[int] | None = None) -> list[list[int]]:
    """Splits items into micro-batches of similar length with at most `budget` tokens each; returns indices.

    An item longer than the budget is alone; an item of cost 0 is left out. Longest first, so that memory peaks in the
    first micro-batch, but items of one prompt group are adjacent, so that their prompt is computed once.
    """
    found: list[list[int]] = []
    left = 0
    groups = range(len(costs)) if groups is None else groups
    longest: dict[int, int] = {}
    for group, cost in zip(groups, costs, strict=True):
        longest[group] = max(cost, longest.get(group, 0))
    needed = [index for index, cost in enumerate(costs) if cost]
    for index in sorted(needed, key=lambda i: (-longest[groups[i]], groups[i], -costs[i], i)):
        if found and costs[index] <= left:
            found[-1].append(index)
        else:
            found.append([index])
            left = budget
        left -= costs[index]
    return found


@torch.no_grad()
def in_micro_batches(function: Callable[[Rows], Found], rows: Rows, budget: int) -> Found:
    """Applies `function` to micro-batches of `budget` tokens without gradients; [B, T] fields keep the row order."""
    groups = micro_batches(rows.cost(), budget, rows.row_ids)
    found = [function(rows.select(group)) for group in groups]
    order = torch.as_tensor([index for group in groups for index in group]).argsort()
    if isinstance(found[0], Tensor):
        return _reassemble([part for part in found if isinstance(part, Tensor)], order)
    names = [field.name for field in fields(found[0]) if getattr(found[0], field.name) is not None]
    return replace(found[0], **{name: _reassemble([getattr(part, name) for part in found], order) for name in names})


def pad_T(values_BT: Tensor, width: int) -> Tensor:
    """Pads [B, T] to [B, width] with zeros (False for masks)."""
    return nn.functional.pad(values_BT, (0, width - values_BT.shape[1]))


def concatenated(parts: Sequence[SomeBatch]) -> SomeBatch:
    """Batches as one; [B, T] tensors are padded to the longest."""
    names = [field.name for field in fields(parts[0])]
    return replace(parts[0], **{name: _concatenated([getattr(part, name) for part in parts]) for name in names})


def _concatenated(values: list[Any]) -> Any:
    if isinstance(values[0], Tensor):
        width = max(value.shape[-1] for value in values)
        return torch.cat([pad_T(value, width) if value.ndim > 1 else value for value in values])
    return None if values[0] is None else reduce(add, values)


def _reassemble(parts: list[Tensor], order: Tensor) -> Tensor:
    """Concatenates groups of rows, padded to one width, in the original order."""
    width = max(part.shape[1] for part in parts)
    return torch.cat([pad_T(part, width) for part in parts])[order.to(parts[0].device)]
