"""Seeds and generators that depend on their arguments alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(seed: int, purpose: str, *indices: int) -> int:
    """A 63-bit seed that depends on every argument and on nothing else, so that a sample never depends on its
    neighbours in the batch, on the number of ranks or on how far an earlier generator has been drawn from."""
    digest = hashlib.blake2b(repr((seed, purpose, indices)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, purpose: str, *indices: int) -> torch.Generator:
    """A CPU generator of its own for (seed, purpose, indices)."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, *indices))


@contextmanager
def seeded(purpose: str) -> Iterator[None]:
    """Inside the block torch draws from (seed given to torch.manual_seed, purpose); weights are
    drawn on the CPU, and outside the block nothing has been drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(torch.initial_seed(), purpose))
        yield
