"""The bundled model and its first layer, which most runs load, are read by transformers once; runs get copies."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from postrain.models import loading
from postrain.models.sources import ResolvedModel


def apply(patched: pytest.MonkeyPatch) -> None:
    """Replaces the reading of models."""
    read, known = loading._read, {}

    def read_once(resolved: Any, head: Any, dtype: Any, quantization: Any) -> Any:
        fixed = isinstance(resolved, ResolvedModel) and (resolved.source == "bundled" or resolved.name == "one-layer")
        # A new head, new tokens and new weights are random.
        if not fixed or head != "causal" or quantization is not None or resolved.from_scratch or resolved.resize:
            return read(resolved, head, dtype, quantization)
        if (resolved, dtype) not in known:
            known[resolved, dtype] = read(resolved, head, dtype, quantization)
        return deepcopy(known[resolved, dtype])

    patched.setattr(loading, "_read", read_once)
