"""Training and held-out rows that share no prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from postrain.data.records import Record, prompt_content
from postrain.ops import derive_seed
from postrain.types import ConfigError

SEEN = "held-out prompt also in training"
SPARE = "held out beyond data.eval_rows"


@dataclass(frozen=True)
class Split:
    """The two parts."""

    train: tuple[Record, ...]
    held_out: tuple[Record, ...]
    dropped: Mapping[str, int]
    """Held-out rows that are left out, by reason."""


def split(records: Sequence[Record], *, fraction: float, eval_rows: int, seed: int, source: str) -> Split:
    """Holds out a share of the prompts with all their rows, and at most `eval_rows` prompts."""
    prompts = sorted({prompt_content(record) for record in records})
    if len(prompts) < 2:
        raise ConfigError(
            f"{source}: {len(prompts)} different prompts are too few to hold one out; give held-out rows with "
            "data.eval_path=FILE"
        )
    wanted = min(math.ceil(fraction * len(prompts)), eval_rows, len(prompts) - 1)
    drawn = set(sorted(prompts, key=lambda prompt: derive_seed(seed, f"held out: {prompt}"))[:wanted])
    held_out = tuple(record for record in records if prompt_content(record) in drawn)
    train = tuple(record for record in records if prompt_content(record) not in drawn)
    return Split(train, held_out[:eval_rows], {SPARE: len(held_out[eval_rows:])})


def unseen(train: Sequence[Record], held_out: Sequence[Record], *, eval_rows: int, source: str) -> Split:
    """Keeps the source's own held-out rows, those that training does not give away."""
    known = {prompt_content(record) for record in train}
    kept = tuple(record for record in held_out if prompt_content(record) not in known)
    if not kept:
        raise ConfigError(
            f"{source}: every held-out row has a prompt that is also in training, so there is nothing to evaluate on; "
            "give other rows with data.eval_path=FILE"
        )
    return Split(tuple(train), kept[:eval_rows], {SEEN: len(held_out) - len(kept), SPARE: len(kept[eval_rows:])})
