"""What one thing of the world looks like before it is written as a row, and on which side of the split it stands.

Randomness and the split are functions of text, never of the process they run in. An item belongs to train or eval by a
hash of its content alone, so that no seed, count or order can leak one into the other. One item in ten is eval."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from typing import Any, Literal

Gold = dict[str, Any]
"""JSON-able specification of what a good completion is; see gold.py for its keys."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One prompt with answers of known worth."""

    content: str
    """What the item is about; equal for two wordings of the same query. Its hash decides the split."""
    category: str
    """One of the categories that a user balances or reports by."""
    prompt: str
    """What the model is given."""
    reference: str
    """A completion that scores 1 in every part."""
    wrong: str
    """A completion of the same form that fails the main part."""
    gold: Gold
    """How completions are scored."""
    answer: str | None = None
    """The bare right answer, where there is one."""
    steps: tuple[str, ...] = ()
    """The reference cut into steps, where it has them."""
    text: str = field(default="")
    """The item as a document of running text; empty where it has no place in one."""


Split = Literal["train", "eval"]
EVAL_SHARE = 10


def generator(*purpose: str | int) -> random.Random:
    """A generator of its own for each purpose; equal on every machine (text seeds go through SHA-512)."""
    return random.Random("/".join(str(part) for part in purpose))


def split_of(content: str) -> Split:
    """The side an item's content puts it on."""
    digest = hashlib.sha256(content.encode("utf-8")).digest()
    return "eval" if int.from_bytes(digest[:4], "big") % EVAL_SHARE == 0 else "train"
