"""Next-token prediction on plain text: every token is learned."""

from __future__ import annotations

import math
from typing import ClassVar

from postrain.methods.base import Method
from postrain.models.scoring import score
from postrain.types import LossSum, Rows


class Pretrain(Method):
    """Minimises −Σ log p(token | all before it) over the tokens of whole documents."""

    kind: ClassVar[str] = "Text"
    learns: ClassVar[tuple[str, float]] = ("eval/loss", -0.5)
    headline: ClassVar[tuple[str, str, str]] = ("loss", "perplexity", "eval/perplexity")

    def loss_sum(self, batch: Rows) -> LossSum:
        return LossSum(-score(self.policy, batch).logps_BT.sum(), {})

    def derived(self, metrics: dict[str, float]) -> dict[str, float]:
        return {"perplexity": math.exp(min(metrics["loss"], 50.0))}
