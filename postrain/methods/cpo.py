"""Contrastive preference optimisation: DPO with a uniform reference, plus an SFT loss on the chosen completions
(Xu et al. 2024).

Axes: B pairs, T completion tokens.
"""

from __future__ import annotations

from typing import ClassVar

from postrain import losses
from postrain.data.kinds.preference import Pairs
from postrain.methods.learning_rates import LearningRates
from postrain.methods.pairs import PairMethod, Smoothing, lengths, pair_metrics, score_pairs
from postrain.types import Count, LossSum, Mean, NonNegative, Positive, Size


class CPO(PairMethod):
    """DPO without a reference model, with an SFT loss on the chosen completions (Xu et al. 2024).

    loss = −log σ(β (log π(chosen) − log π(rejected))) − sft_coef · log π(chosen)/tokens

    A mean over pairs: `losses.cpo`.
    """

    # At learning rates that preserve fluency, accuracy changes slowly; the loss changes first.
    expected_change: ClassVar[tuple[str, float]] = ("eval/loss", -0.2)

    rates: ClassVar[LearningRates] = LearningRates(base=1e-6, nano=1.5e-4)
    updates: Count = 60
    batch_size: Size = 32
    beta: Positive = 0.1
    """Scale β of the difference of log-probabilities of the two completions."""
    label_smoothing: Smoothing = 0.0
    """ε, the assumed share of wrong labels, below 0.5."""
    sft_coef: NonNegative = 0.2
    """Weight of the SFT loss on the chosen completion; 0 disables it."""

    def loss_sum(self, batch: Pairs) -> LossSum:
        scores = score_pairs(self.policy, batch)
        chosen_B, rejected_B = scores.chosen.logps_BT.sum(1), scores.rejected.logps_BT.sum(1)
        chosen_lengths_B = lengths(scores.chosen)
        loss_B = losses.cpo(
            chosen_B,
            rejected_B,
            chosen_lengths=chosen_lengths_B,
            beta=self.beta,
            sft_coef=self.sft_coef,
            label_smoothing=self.label_smoothing,
            reduction="none",
        )
        metrics = pair_metrics(self.beta * chosen_B, self.beta * rejected_B, scores)
        metrics["nll/chosen"] = Mean(-(chosen_B / chosen_lengths_B).detach().sum(), len(batch))
        return LossSum.of_rows(loss_B, metrics)
