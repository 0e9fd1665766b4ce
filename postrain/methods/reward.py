"""Reward model from preference pairs: Bradley-Terry on a scalar head, read at the last token of a completion."""

from __future__ import annotations

from typing import ClassVar, Literal

from postrain import losses
from postrain.data.kinds.preference import Pairs
from postrain.methods.base import Method
from postrain.methods.learning_rates import LearningRates
from postrain.methods.metrics import margin_bins, positive
from postrain.models.scoring import sequence_scores
from postrain.types import LossSum, Mean, NonNegative, Size


class RewardModel(Method):
    """Trains a scalar reward model on preference pairs (Bradley and Terry 1952).

        loss = −log σ(r_c − r_r − margin) + center_rewards_coefficient · (r_c + r_r)²      a mean over pairs

    r is read at the last token of a completion. `losses.bradley_terry` is the loss.
    """

    kind: ClassVar[str] = "Preference"
    head: ClassVar[Literal["causal", "scalar"]] = "scalar"
    expected_change: ClassVar[tuple[str, float]] = ("eval/accuracy", 0.15)
    headline: ClassVar[tuple[str, str, str]] = ("loss", "accuracy", "eval/accuracy")
    rates: ClassVar[LearningRates] = LearningRates(base=1e-5, nano=3e-3, kl=0.01)

    batch_size: Size = 32
    use_margin: bool = False
    """Subtract the margin of each row in the loss; it is 0 for rows without one."""
    center_rewards_coefficient: NonNegative = 0.01
    """Weight of the squared sum of a pair's two rewards, which centres rewards at 0; 0 disables it."""

    def denominator(self, batch: Pairs) -> int:
        return len(batch)

    def loss_sum(self, batch: Pairs) -> LossSum:
        chosen_B, rejected_B = sequence_scores(self.policy, batch.chosen + batch.rejected).chunk(2)
        margin_B = batch.margin_B.to(chosen_B) * self.use_margin
        loss_B = losses.bradley_terry(
            chosen_B, rejected_B, margin_B, center_rewards_coefficient=self.center_rewards_coefficient, reduction="none"
        )
        gap_B = (chosen_B - rejected_B).detach()
        pairs = len(batch)
        metrics = {
            "accuracy": Mean.of_rows(positive(gap_B)),
            "margin": Mean(gap_B.sum(), pairs),
            "reward/chosen": Mean(chosen_B.detach().sum(), pairs),
            "reward/rejected": Mean(rejected_B.detach().sum(), pairs),
        }
        # Signed calibration gaps of the bins are summed over batches; `derived` computes the error from the sums.
        for index, (_, confidence, right) in enumerate(margin_bins(gap_B).tolist()):
            metrics[f"_bin/{index}"] = Mean(confidence - right, pairs)
        return LossSum.of_rows(loss_B, metrics)

    def derived(self, metrics: dict[str, float]) -> dict[str, float]:
        return {"calibration_error": sum(abs(value) for name, value in metrics.items() if name.startswith("_bin/"))}
