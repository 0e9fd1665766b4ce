"""Simple preference optimisation: the mean log-probability per token is the reward, and the chosen completion's must be
larger by a margin; no reference (Meng, Xia and Chen 2024).

Axes: B pairs, T completion tokens.
"""

from __future__ import annotations

from typing import ClassVar

from postrain import losses
from postrain.data.kinds.preference import Pairs
from postrain.methods.pairs import PairMethod, Smoothing, mean_logps, pair_metrics, score_pairs
from postrain.types import LossSum, NonNegative, Positive


class SimPO(PairMethod):
    """Minimises −log σ(β (mean log π(chosen) − mean log π(rejected)) − γ), a mean over pairs (eq. 6):
    `losses.simpo`."""

    # At a rate that keeps the language intact, what it writes improves before its ranking does.
    learns: ClassVar[tuple[str, float]] = ("gold/total", 0.05)

    beta: Positive
    gamma_beta_ratio: NonNegative
    """γ/β, the margin in nats per token."""
    label_smoothing: Smoothing
    """Share of labels taken to be wrong."""

    def loss_sum(self, batch: Pairs) -> LossSum:
        scores = score_pairs(self.policy, batch)
        chosen_B, rejected_B = mean_logps(scores.chosen), mean_logps(scores.rejected)
        total = losses.simpo(
            chosen_B,
            rejected_B,
            beta=self.beta,
            gamma_beta_ratio=self.gamma_beta_ratio,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )
        return LossSum(total, pair_metrics(self.beta * chosen_B, self.beta * rejected_B, scores))
