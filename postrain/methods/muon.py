"""Muon for the matrices of the transformer blocks, AdamW for embeddings, heads, norms and biases.

Muon orthogonalizes the momentum of a matrix with a few Newton–Schulz iterations and steps along that (Jordan et al.
2024). Moonlight scales the step to the size of AdamW's, so that learning rates and weight decay of AdamW can be used
(Liu et al. 2025, "Muon is Scalable for LLM Training", section 2.2): `adjust_lr_fn=match_rms_adamw`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal

import torch
from torch.distributed.tensor import DTensor

from postrain.errors import ConfigError
from postrain.types import Count, Fraction, Positive

USE_MUON = "use_muon"
"""The key of a parameter group that says whether Muon or AdamW updates it."""


class Muon(torch.optim.Optimizer):
    """torch.optim.Muon on parameter groups with `use_muon`, torch.optim.AdamW on the others, with one learning rate."""

    separates_blocks: ClassVar[bool] = True
    """Whether the matrices of the transformer blocks are parameter groups of their own, marked with `use_muon`."""

    # Documentation of the keys; their values are in the parameter groups.
    momentum: Fraction
    """Decay of Muon's momentum."""
    nesterov: bool
    """Whether Muon looks one step ahead (Nesterov momentum)."""
    ns_steps: Count
    """Newton–Schulz iterations that orthogonalize a step."""
    adjust_lr_fn: Literal["match_rms_adamw", "original"]
    """match_rms_adamw: steps of AdamW's size, 0.2·√max(rows, columns), for AdamW's learning rates. original:
    √max(1, rows/columns), for learning rates near 0.02."""
    betas: tuple[Fraction, Fraction]
    """β₁ and β₂ of AdamW, in place of method.adam_betas."""
    eps: Positive
    """ε of AdamW, in place of method.adam_eps."""

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: Positive,
        *,
        momentum: Fraction = 0.95,
        nesterov: bool = True,
        ns_steps: Count = 5,
        adjust_lr_fn: Literal["match_rms_adamw", "original"] = "match_rms_adamw",
        betas: tuple[Fraction, Fraction] = (0.9, 0.999),
        eps: Positive = 1e-8,
    ) -> None:
        groups = list(params)
        if not hasattr(torch.optim, "Muon"):
            raise ConfigError("optim=muon: needs PyTorch 2.9 or later; use optim=adamw")
        if not any(group[USE_MUON] for group in groups):
            raise ConfigError("optim=muon: no trained matrix is in a transformer block; use optim=adamw")
        if any(isinstance(parameter, DTensor) for group in groups for parameter in group["params"]):
            raise ConfigError("optim=muon: needs whole matrices, and trainer.strategy=fsdp shards them; use ddp")
        self._muon = self._part(
            groups,
            True,
            torch.optim.Muon,
            lr=lr,
            momentum=momentum,
            nesterov=nesterov,
            ns_steps=ns_steps,
            adjust_lr_fn=adjust_lr_fn,
        )
        self._adamw = self._part(groups, False, torch.optim.AdamW, lr=lr, betas=betas, eps=eps, fused=True)
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})

    @staticmethod
    def _part(
        groups: list[dict[str, Any]], muon: bool, make: Callable[..., torch.optim.Optimizer], **options: Any
    ) -> torch.optim.Optimizer | None:
        """The optimizer of the groups marked so, which get its settings; None without groups."""
        own = [group for group in groups if group[USE_MUON] is muon]
        return make(own, **options) if own else None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step of both."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for muon, part in ((True, self._muon), (False, self._adamw)):
            if part is not None:
                # Loading a state replaces groups and state, so the parts get them at every step.
                part.param_groups = [group for group in self.param_groups if group[USE_MUON] is muon]
                part.state = self.state
                part.step()
        return loss
