"""Sampling parameters of rows as vLLM calls them, in this process and over HTTP alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from postrain.types import Sampling, Stop


def rows_of(sampling: Sampling, seeds: Sequence[int], stop: Stop) -> list[dict[str, Any]]:
    """The sampling parameters of each row."""
    limits = stop.limits or [sampling.max_new_tokens] * len(seeds)
    return [settings(sampling, *row, stop) for row in zip(seeds, limits, strict=True)]


def settings(sampling: Sampling, seed: int, limit: int, stop: Stop) -> dict[str, Any]:
    """A row's sampling parameters as vLLM calls them."""
    return {
        "max_tokens": limit,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k or -1,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "seed": seed,
        # Explicit, since a server would use the model's generation config.
        "repetition_penalty": 1.0,
        "stop_token_ids": list(stop.ids),
        "stop": list(stop.texts),
        "include_stop_str_in_output": True,
        # Stop texts are matched in the text including special tokens.
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        # Of the sampled token only.
        "logprobs": 0,
    }
