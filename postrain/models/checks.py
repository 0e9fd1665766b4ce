"""Checks of models, devices and token ids that Python code passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from postrain.errors import ConfigError, as_config_error
from postrain.models.directory import context_length
from postrain.models.parts import unwrapped


def check_device(device: torch.device | str) -> None:
    """Raises ConfigError for a device that PyTorch does not know or see."""
    with as_config_error(f"device={device!r:.40} cannot be used here; use cpu"):
        torch.zeros(1, device=device)


def check_rows(model: nn.Module, rows: Sequence[Tensor]) -> None:
    """Raises ConfigError unless the model is a language model that can read these token ids, [L] each."""
    inner: Any = unwrapped(model) if hasattr(model, "get_base_model") else model
    if not hasattr(inner, "config") or hasattr(inner, "score"):
        what = f"{type(inner).__name__} has a scalar head" if hasattr(inner, "score") else f"got {type(inner).__name__}"
        raise ConfigError(f'model: {what}; expected a language model, as load_model(NAME, head="causal") gives')
    words, context = inner.get_input_embeddings().num_embeddings, context_length(inner.config.to_dict())
    for row in rows:
        wrong = [token for token in row.tolist() if not 0 <= token < words]
        if wrong:
            raise ConfigError(f"token id {wrong[0]}: the model has {words} tokens; is this its tokenizer?")
        if len(row) > context:
            raise ConfigError(f"a row has {len(row)} tokens, and the model's context {context}; shorten it")
