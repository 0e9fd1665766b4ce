"""Simple preference optimisation: the mean log-probability per token is the implicit reward, with a target margin and
without a reference (Meng, Xia and Chen 2024).

Axes: B pairs, T completion tokens.
"""

from __future__ import annotations

from typing import ClassVar

from postrain import losses
from postrain.data.kinds.preference import Pairs
from postrain.methods.learning_rates import LearningRates
from postrain.methods.pairs import PairMethod, Smoothing, mean_logps, pair_metrics, score_pairs
from postrain.types import LossSum, NonNegative, Positive, Size


class SimPO(PairMethod):
    """Trains a policy on preference pairs without a reference model: the implicit reward is the mean log-probability
    per token (Meng, Xia and Chen 2024, eq. 6).

        loss = −log σ(β (mean log π(chosen) − mean log π(rejected)) − γ)      a mean over pairs: `losses.simpo`
    """

    # At learning rates that preserve fluency, the quality of samples improves before the ranking accuracy.
    expected_change: ClassVar[tuple[str, float]] = ("gold/total", 0.05)

    # The authors train models of 8B and 9B parameters with 6e-7 to 1e-6.
    rates: ClassVar[LearningRates] = LearningRates(base=2e-6, nano=6e-5)
    batch_size: Size = 32
    beta: Positive = 10.0
    """Scale β of the mean log-probabilities."""
    gamma_beta_ratio: NonNegative = 0.3
    """γ/β, the target margin [nats/token]."""
    alpha: float = 0.0
    """α of AlphaPO, which replaces log p by (1 − p^−α)/α with p = exp(mean log-probability per token): above 0 it
    steepens the reward of unlikely completions, below 0 it flattens it. 0 is SimPO."""
    label_smoothing: Smoothing = 0.0
    """ε, the assumed share of wrong labels, below 0.5."""

    def loss_sum(self, batch: Pairs) -> LossSum:
        scores = score_pairs(self.policy, batch)
        chosen_B, rejected_B = mean_logps(scores.chosen), mean_logps(scores.rejected)
        loss_B = losses.simpo(
            chosen_B,
            rejected_B,
            beta=self.beta,
            gamma_beta_ratio=self.gamma_beta_ratio,
            alpha=self.alpha,
            label_smoothing=self.label_smoothing,
            reduction="none",
        )
        rewards = [self.beta * losses.alpha_reward(mean_B, self.alpha) for mean_B in (chosen_B, rejected_B)]
        return LossSum.of_rows(loss_B, pair_metrics(rewards[0], rewards[1], scores))
