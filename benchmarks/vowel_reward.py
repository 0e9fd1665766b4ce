"""A reward both sides of a benchmark are paid by: cheap, and different for nearly every completion."""

from __future__ import annotations

from typing import Any


def vowels(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Share of vowels among the characters of a completion."""
    return [sum(said.count(letter) for letter in "aeiou") / max(1, len(said)) for said in completions]
