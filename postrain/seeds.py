"""Seeds and generators derived from their arguments only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(seed: int, purpose: str, *indices: int) -> int:
    """A 63-bit seed determined by its arguments, so that a sample does not depend on the other samples of its batch, on
    the number of ranks or on the state of a global generator."""
    digest = hashlib.blake2b(repr((seed, purpose, indices)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, purpose: str, *indices: int) -> torch.Generator:
    """A separate CPU generator for (seed, purpose, indices)."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, *indices))


@contextmanager
def seeded(purpose: str) -> Iterator[None]:
    """Inside the block torch's CPU generator is seeded by (seed given to torch.manual_seed, purpose); afterwards its
    previous state is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(torch.initial_seed(), purpose))
        yield
