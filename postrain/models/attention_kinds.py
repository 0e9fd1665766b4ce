"""Which keys the attention layers of a model see: all earlier ones, or those of a sliding window."""

from __future__ import annotations

import math
from typing import Any

FULL, SLIDING = "full_attention", "sliding_attention"
"""The names of transformers."""


def layer_kinds(config: Any) -> set[str]:
    """The kinds of a model's attention layers; empty if its text config does not list them."""
    return set(getattr(config, "layer_types", None) or ())


def windows(config: Any) -> dict[str, int | None]:
    """The window of each kind of layer: the number of tokens that a token attends to, itself included, or None."""
    return {kind: config.sliding_window if kind == SLIDING else None for kind in layer_kinds(config)}


def is_windowed(config: Any, row: float = math.inf) -> bool:
    """Whether layers may have a window that is narrower than a row of `row` tokens."""
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return window is not None and window < row and layer_kinds(config) != {FULL}


def has_known_kinds(config: Any, row: float = math.inf) -> bool:
    """Whether the windows of all layers are known, for rows of `row` tokens.

    A config without a list of kinds does not tell which layers have its window.
    """
    kinds = layer_kinds(config)
    return kinds <= {FULL, SLIDING} if kinds else not is_windowed(config, row)
