"""What one thing of the world looks like before it is written as a row of some data format."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

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
