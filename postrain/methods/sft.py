"""Supervised fine-tuning on demonstrations, with two optional leashes to the weights it started from.

LoRA-SFT is this method with `adapter=lora`; there is no second class for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from postrain.methods.base import Method
from postrain.models.scoring import compare, score
from postrain.types import ConfigError, LossSum, Max, Mean, NonNegative, Rows


def l2_distance(parameters: Sequence[Tensor], start: Sequence[Tensor]) -> Tensor:
    """Σ (θ − θ₀)² over all parameters, a scalar (L2-SP of Li, Grandvalet and Davoine 2018)."""
    return torch.stack([((now - then) ** 2).sum() for now, then in zip(parameters, start, strict=True)]).sum()


class SFT(Method):
    """Minimises −Σ log p(answer token) / tokens + kl_coef · KL(policy ‖ start) + l2_coef · Σ (θ − θ₀)²."""

    kind: ClassVar[str] = "Demonstration"
    learns: ClassVar[tuple[str, float]] = ("gold/total", 0.1)
    headline: ClassVar[tuple[str, str, str]] = ("loss", "perplexity", "eval/perplexity")

    kl_coef: NonNegative
    """Weight of the exact KL to the start, a mean over supervised tokens as the loss itself."""
    l2_coef: NonNegative
    """Weight of the squared distance of what learns from where it started."""

    def needs_reference(self) -> bool:
        return self.kl_coef > 0

    def attached(self) -> None:
        self.start: list[Tensor] = []

    def on_fit_start(self) -> None:
        if self.l2_coef and self.device_mesh is not None:
            raise ConfigError(
                "method.l2_coef: not with trainer.strategy=fsdp, which keeps no whole parameters; use ddp"
            )
        if self.l2_coef:
            self.start = [parameter.detach().clone() for parameter in self.trainable()]

    def loss_sum(self, batch: Rows) -> LossSum:
        tokens = self.denominator(batch)
        metrics: dict[str, Mean | Max] = {}
        if self.kl_coef:
            found = compare(self.policy, self.reference_policy, batch)
            log_ratio_BT = (found.logps_BT - found.ref_logps_BT).detach()
            metrics["kl/exact"] = Mean(found.kl_BT.detach().sum(), tokens)
            if tokens:
                metrics["kl/log_ratio_max"] = Max(log_ratio_BT.abs().max())
            nll, penalty = -found.logps_BT.sum(), self.kl_coef * found.kl_BT.sum()
        else:
            nll, penalty = -score(self.policy, batch).logps_BT.sum(), 0.0
        if self.kl_coef or self.l2_coef:
            metrics["nll"] = Mean(nll.detach(), tokens)
        if self.l2_coef:
            distance = l2_distance(self.trainable(), self.start)
            metrics["l2"] = Mean(distance.detach() * tokens, tokens)
            # The caller divides by the tokens of the whole step, of which this micro-batch holds `tokens`.
            penalty = penalty + self.l2_coef * distance * tokens
        return LossSum(nll + penalty, metrics)

    def derived(self, metrics: dict[str, float]) -> dict[str, float]:
        return {"perplexity": math.exp(min(metrics.get("nll", metrics["loss"]), 50.0))}
