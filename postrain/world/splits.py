"""Randomness and the train/eval split of the world: both are functions of text, never of the process they run in.

An item belongs to train or eval by a hash of its content alone, so that no seed, count or order can leak one into the
other. One item in ten is eval.
"""

from __future__ import annotations

import hashlib
import random
from typing import Literal

Split = Literal["train", "eval"]
EVAL_SHARE = 10


def generator(*purpose: str | int) -> random.Random:
    """A generator of its own for each purpose; equal on every machine (text seeds go through SHA-512)."""
    return random.Random("/".join(str(part) for part in purpose))


def split_of(content: str) -> Split:
    """The side an item's content puts it on."""
    digest = hashlib.sha256(content.encode("utf-8")).digest()
    return "eval" if int.from_bytes(digest[:4], "big") % EVAL_SHARE == 0 else "train"
