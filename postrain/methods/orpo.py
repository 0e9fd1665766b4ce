"""Odds-ratio preference optimisation: an SFT loss on the chosen completions plus an odds-ratio loss of the pair,
without a reference (Hong, Lee and Thorne 2024).

Axes: B pairs, T completion tokens.
"""

from __future__ import annotations

from typing import ClassVar

from postrain import losses
from postrain.data.kinds.preference import Pairs
from postrain.methods.learning_rates import LearningRates
from postrain.methods.pairs import PairMethod, mean_logps, pair_metrics, score_pairs
from postrain.types import Count, LossSum, Mean, NonNegative, Size


class ORPO(PairMethod):
    """Supervised fine-tuning and preference learning in one loss, without a reference model (Hong, Lee and Thorne 2024,
    eq. 6).

        loss = −log π(chosen)/tokens − odds_coef · log σ(log odds(chosen) − log odds(rejected))      a mean over pairs

    `losses.orpo` is the loss; odds are P / (1 − P) with P = exp(mean log-probability per token).
    """

    # At learning rates that preserve fluency, the quality of samples improves before the ranking accuracy.
    expected_change: ClassVar[tuple[str, float]] = ("gold/total", 0.05)

    # 5e-6 at 7B parameters, as the authors' Mistral-ORPO: the loss is mostly that of SFT.
    rates: ClassVar[LearningRates] = LearningRates(base=1.3e-5, nano=1.5e-4)
    updates: Count = 60
    batch_size: Size = 32
    odds_coef: NonNegative = 1.0
    """λ, the weight of the odds-ratio loss relative to the SFT loss."""

    def loss_sum(self, batch: Pairs) -> LossSum:
        scores = score_pairs(self.policy, batch)
        chosen_B, rejected_B = mean_logps(scores.chosen), mean_logps(scores.rejected)
        odds_B = losses.odds_ratio(chosen_B.detach(), rejected_B.detach())
        metrics = pair_metrics(chosen_B, rejected_B, scores)
        metrics["nll/chosen"] = Mean(-chosen_B.detach().sum(), len(batch))
        metrics["loss/odds_ratio"] = Mean(odds_B.sum(), len(batch))
        return LossSum.of_rows(losses.orpo(chosen_B, rejected_B, odds_coef=self.odds_coef, reduction="none"), metrics)
