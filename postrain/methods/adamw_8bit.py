"""AdamW with moments in 8 bits (Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization")."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from postrain.config.extras import load
from postrain.errors import ConfigError
from postrain.types import Count, Fraction, Positive


class AdamW8bit(torch.optim.Optimizer):
    """bitsandbytes' AdamW8bit, imported where it is constructed: 2 bytes of moments per parameter instead of 8."""

    # Documentation of the keys; their values are in the parameter groups.
    betas: tuple[Fraction, Fraction]
    """β₁ and β₂, in place of method.adam_betas."""
    eps: Positive
    """ε, in place of method.adam_eps."""
    min_8bit_size: Count
    """Parameters with fewer values have float32 moments."""

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: Positive,
        *,
        betas: tuple[Fraction, Fraction] = (0.9, 0.999),
        eps: Positive = 1e-8,
        min_8bit_size: Count = 4096,
    ) -> None:
        groups = list(params)
        if any(isinstance(parameter, DTensor) for group in groups for parameter in group["params"]):
            raise ConfigError("optim=adamw_8bit: cannot quantize the shards of trainer.strategy=fsdp; use optim=adamw")
        self._inner: torch.optim.Optimizer = load("bitsandbytes").optim.AdamW8bit(
            groups, lr=lr, betas=betas, eps=eps, weight_decay=0.0, min_8bit_size=min_8bit_size
        )
        super().__init__(groups, self._inner.defaults)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step."""
        self._inner.param_groups, self._inner.state = self.param_groups, self.state
        return self._inner.step(closure)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Restores a state; torch would convert the quantized moments to the dtype of the parameters."""
        self._inner.param_groups = self.param_groups
        self._inner.load_state_dict(dict(state_dict))
        self.param_groups, self.state = self._inner.param_groups, self._inner.state
