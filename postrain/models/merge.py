"""Merges a saved adapter into its base model, and checks the logits of the weights as they are saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from postrain.errors import ConfigError
from postrain.models.directory import read_json
from postrain.models.loading import attach_adapter, load, load_tokenizer
from postrain.models.logit_check import CheckRows, LogitCheck, compare_logits, logits_on
from postrain.models.quiet import quiet
from postrain.models.sources import ResolvedModel

BOUNDS = {"float32": 1e-3, "bfloat16": 3e-2}
"""The largest difference of a logit, as a share of the largest logit (of 1, if that is smaller): float32 differs by the
order of sums, bfloat16 by the rounding of all weights to 8 bits."""


@dataclass(frozen=True)
class Merged:
    """A model with its adapter merged."""

    model: Any
    """In the dtype it is saved in."""
    tokenizer: Any
    dtype: str
    check: LogitCheck

    @property
    def bound(self) -> float:
        """The largest difference of a logit that is accepted."""
        return BOUNDS[self.dtype] * max(1.0, self.check.largest)


def merge(resolved: ResolvedModel, rows: Callable[[Any, int], CheckRows], dtype: str | None = None) -> Merged:
    """Merges the last adapter of a model; `rows` gives the rows of the check for a tokenizer and vocabulary.

    `dtype` is that of the base model by default. Raises ConfigError if there is no adapter, or if a logit changes by
    more than BOUNDS.
    """
    if not resolved.adapters:
        raise ConfigError(f"{resolved.name} has no adapter to merge: its weights in {resolved.directory} are complete")
    dtype = dtype or base_dtype(resolved.directory)
    with quiet():
        return _merge(resolved, load_tokenizer(resolved), rows, dtype)


def _merge(resolved: ResolvedModel, tokenizer: Any, rows: Callable[[Any, int], CheckRows], dtype: str) -> Merged:
    base = replace(resolved, adapters=resolved.adapters[:-1])
    unmerged = attach_adapter(load(base, resolved.head, dtype=torch.float32).model, resolved.adapters[-1])
    on = rows(tokenizer, unmerged.get_base_model().config.get_text_config().vocab_size)
    before = logits_on(unmerged, on)
    # Rounded as it is saved, computed in float32.
    merged = unmerged.merge_and_unload().to(getattr(torch, dtype)).float()
    found = Merged(merged, tokenizer, dtype, compare_logits(before, logits_on(merged, on), on))
    # Written so that NaN is refused.
    if not found.check.max_difference <= found.bound:
        remedy = "merge in float32 (--dtype float32)" if dtype != "float32" else "merge it where it was trained"
        raise ConfigError(
            f"merging {resolved.adapters[-1]} changes a logit by {found.check.max_difference:.2g}, more than the bound "
            f"of {found.bound:.2g} in {dtype}; {remedy}"
        )
    return replace(found, model=merged.to(getattr(torch, dtype)))


def base_dtype(directory: Path) -> str:
    """The dtype of saved weights: bfloat16, or float32 for all others."""
    config = read_json(directory / "config.json")
    named = config.get("dtype") or config.get("torch_dtype") or config.get("text_config", {}).get("dtype")
    return "bfloat16" if named == "bfloat16" else "float32"
