"""The reward function of both sides of a benchmark: cheap, with different values for nearly all completions."""

from __future__ import annotations

from typing import Any


def vowels(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Share of vowels among the characters of a completion."""
    return [sum(text.count(letter) for letter in "aeiou") / max(1, len(text)) for text in completions]
