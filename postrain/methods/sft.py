"""Supervised fine-tuning on demonstrations, with optional penalties on the distance to the initial model.

LoRA-SFT is this method with `adapter=lora`.
"""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor

from postrain import losses
from postrain.errors import ConfigError
from postrain.methods.base import Method
from postrain.methods.learning_rates import LearningRates
from postrain.models.scoring import score, score_with_reference
from postrain.types import LossSum, LRSchedule, Max, Mean, NonNegative, Rows, Size


class SFT(Method):
    """Supervised fine-tuning: the next-token loss on the answers of demonstrations.

        loss = −Σ log π(answer token) / tokens + kl_coef · KL(policy ‖ reference) + l2_coef · Σ (θ − θ₀)²

    `losses.sft` is the first term. The penalties keep the model close to its initial weights; both are off by default.
    """

    kind: ClassVar[str] = "Demonstration"
    expected_change: ClassVar[tuple[str, float]] = ("gold/total", 0.1)
    headline: ClassVar[tuple[str, str, str]] = ("loss", "perplexity", "eval/perplexity")
    rates: ClassVar[LearningRates] = LearningRates(base=2e-5, nano=2e-3, nano_adapter=1e-2, kl_share=0.35)

    batch_size: Size = 32
    schedule: LRSchedule = "cosine"
    dropout: bool = True
    kl_coef: NonNegative = 0.0
    """Weight of the exact KL(policy ‖ reference), a mean over supervised tokens; 0 disables it."""
    l2_coef: NonNegative = 0.0
    """Weight of the squared distance of the trainable parameters from their initial values; 0 disables it."""

    def needs_reference(self) -> bool:
        return self.kl_coef > 0

    def on_model_attached(self) -> None:
        self.initial: list[Tensor] = []

    def on_fit_start(self) -> None:
        if self.l2_coef and self.device_mesh is not None:
            raise ConfigError("method.l2_coef: not with trainer.strategy=fsdp, which shards the parameters; use ddp")
        if self.l2_coef:
            self.initial = [parameter.detach().clone() for parameter in self.trainable_parameters()]

    def loss_sum(self, batch: Rows) -> LossSum:
        tokens = self.denominator(batch)
        metrics: dict[str, Mean | Max] = {}
        if self.kl_coef:
            found = score_with_reference(self.policy, self.reference_policy, batch)
            log_ratio_BT = (found.logps_BT - found.ref_logps_BT).detach()
            metrics["kl/exact"] = Mean(found.kl_BT.detach().sum(), tokens)
            if tokens:
                metrics["kl/log_ratio_max"] = Max(log_ratio_BT.abs().max())
            logps_BT, mask_BT = found.logps_BT, found.mask_BT
            penalty = self.kl_coef * found.kl_BT.sum()
        else:
            scores = score(self.policy, batch)
            logps_BT, mask_BT, penalty = scores.logps_BT, scores.mask_BT, 0.0
        nll_BT = losses.sft(logps_BT, mask_BT, reduction="none")
        nll, rows = nll_BT.sum(), (nll_BT.detach().sum(1), mask_BT.sum(1))
        if not self.kl_coef and not self.l2_coef:
            return LossSum(nll, metrics, rows)
        metrics["nll"] = Mean(nll.detach(), tokens, rows)
        if self.l2_coef:
            distance = losses.l2_distance(self.trainable_parameters(), self.initial)
            metrics["l2"] = Mean(distance.detach() * tokens, tokens)
            # The training loop divides by the tokens of the global mini-batch; this micro-batch has `tokens` of them.
            penalty = penalty + self.l2_coef * distance * tokens
        return LossSum(nll + penalty, metrics)

    def derived(self, metrics: dict[str, float]) -> dict[str, float]:
        return {"perplexity": math.exp(min(metrics.get("nll", metrics["loss"]), 50.0))}
