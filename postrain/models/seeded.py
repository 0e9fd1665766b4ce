"""Fresh weights that depend on the run's seed and on what they are for, not on what was drawn before them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from postrain.seeds import derive_seed


@contextmanager
def seeded(purpose: str) -> Iterator[None]:
    """Inside the block torch draws from (seed given to torch.manual_seed, purpose); weights are
    drawn on the CPU, and outside the block nothing has been drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(torch.initial_seed(), purpose))
        yield
