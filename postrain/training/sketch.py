"""A random projection of gradients that keeps their products.

    sketch(v)_d = Σ_{i ≡ d mod D} s_i v_i,  s_i = ±1        E[sketch(v)·sketch(w)] = v·w

This is a count sketch (Charikar et al. 2002) whose buckets are the remainders of D. The standard deviation of a product
is about |v||w|/√D, 0.4 % of it for D = 65 521; gradients of fewer parameters are kept as they are.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

SIZE = 65_521
"""A prime: coordinates of one bucket are no column of a matrix, whose entries may be large together."""


class Sketch:
    """The projection for gradients of `count` numbers; the same seed gives the same one."""

    def __init__(self, count: int, seed: int = 0, size: int = SIZE) -> None:
        self.count, self.size = count, min(count, size)
        source = torch.Generator().manual_seed(seed)
        self.signs = torch.randint(0, 2, (count,), generator=source, dtype=torch.int8).mul_(2).sub_(1)

    def __call__(self, parts: Iterable[Tensor]) -> Tensor:
        """The sketch of the gradient whose tensors are `parts`, float32 [D]."""
        found, at = torch.zeros(self.size), 0
        for part in parts:
            flat = part.detach().flatten().float().cpu() * self.signs[at : at + part.numel()]
            buckets = (torch.arange(len(flat)) + at) % self.size
            found.index_add_(0, buckets, flat)
            at += len(flat)
        if at != self.count:
            raise ValueError(f"expected {self.count} numbers, got {at}")
        return found
