"""An item of the world before it becomes a row, and the train/eval split.

Randomness and the split are functions of text, independent of the process. A hash of the content alone assigns an item
to train or eval, whatever the seed, count or order. One item in ten is eval.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from typing import Any, Literal

GoldSpec = dict[str, Any]
"""JSON-serialisable specification of the gold score; gold.py documents its keys."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One prompt with completions of known gold score."""

    content: str
    """The content, equal for all paraphrases of a query. Its hash decides the split."""
    category: str
    """Category, for balancing and reports."""
    prompt: str
    """The prompt of the model."""
    reference: str
    """A completion that scores 1 in every part."""
    wrong: str
    """A completion of the same form that fails the main part."""
    gold: GoldSpec
    """Specification of the gold score of completions."""
    answer: str | None = None
    """The answer alone, if there is one."""
    steps: tuple[str, ...] = ()
    """The steps of the reference, if it has any."""
    text: str = field(default="")
    """The item as a document of running text; empty if it has none."""


Split = Literal["train", "eval"]
EVAL_SHARE = 10


def generator(*purpose: str | int) -> random.Random:
    """A generator per purpose. Equal on all machines, as `random.Random` hashes text seeds with SHA-512."""
    return random.Random("/".join(str(part) for part in purpose))


def split_of(content: str) -> Split:
    """The split of an item, by its content."""
    digest = hashlib.sha256(content.encode("utf-8")).digest()
    return "eval" if int.from_bytes(digest[:4], "big") % EVAL_SHARE == 0 else "train"
