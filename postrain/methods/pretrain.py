"""Next-token prediction on plain text: every token is supervised."""

from __future__ import annotations

import math
from typing import ClassVar

from postrain import losses
from postrain.methods.base import Method
from postrain.methods.learning_rates import LearningRates
from postrain.models.scoring import score
from postrain.types import LossSum, LRSchedule, NonNegative, Rows


class Pretrain(Method):
    """Next-token prediction on documents; every token is supervised.

    loss = −log π(token | prefix)      a mean over tokens: `losses.sft`
    """

    kind: ClassVar[str] = "Text"
    expected_change: ClassVar[tuple[str, float]] = ("eval/loss", -0.5)
    headline: ClassVar[tuple[str, str, str]] = ("loss", "perplexity", "eval/perplexity")
    rates: ClassVar[LearningRates] = LearningRates(base=2e-5, nano=1e-3, from_scratch=2e-4, kl_share=0.35)

    weight_decay: NonNegative = 0.1
    schedule: LRSchedule = "cosine"

    def loss_sum(self, batch: Rows) -> LossSum:
        scores = score(self.policy, batch)
        nll_BT = losses.sft(scores.logps_BT, scores.mask_BT, reduction="none")
        return LossSum(nll_BT.sum(), {}, (nll_BT.detach().sum(1), scores.mask_BT.sum(1)))

    def derived(self, metrics: dict[str, float]) -> dict[str, float]:
        return {"perplexity": math.exp(min(metrics["loss"], 50.0))}
