"""A reward model from preference pairs: Bradley-Terry on a scalar head read at the last token of each completion."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor
from torch.nn.functional import logsigmoid

from postrain.data.kinds.preference import Pairs
from postrain.methods.base import Method
from postrain.methods.calibration import bin_sums
from postrain.models.scoring import scalar
from postrain.ops import share_above
from postrain.types import LossSum, Mean, NonNegative


def bradley_terry(chosen_B: Tensor, rejected_B: Tensor, margin_B: Tensor) -> Tensor:
    """−log σ(r_c − r_r − margin) of each pair, [B] (Bradley and Terry 1952; the margin from Llama 2, eq. 2)."""
    return -logsigmoid(chosen_B - rejected_B - margin_B)


def centring(chosen_B: Tensor, rejected_B: Tensor) -> Tensor:
    """(r_c + r_r)² of each pair, [B]: pins the free constant of Bradley-Terry at zero (Eisenstein et al. 2023)."""
    return (chosen_B + rejected_B) ** 2


class RewardModel(Method):
    """Minimises −log σ(r_c − r_r − margin) + centring_coef · (r_c + r_r)², a mean over pairs."""

    kind: ClassVar[str] = "Preference"
    head: ClassVar[Literal["causal", "scalar"]] = "scalar"
    learns: ClassVar[tuple[str, float]] = ("eval/accuracy", 0.15)
    headline: ClassVar[tuple[str, str, str]] = ("loss", "accuracy", "eval/accuracy")

    use_margin: bool
    """Whether the data's own margins (0 where it has none) are asked for."""
    centring_coef: NonNegative

    def denominator(self, batch: Pairs) -> int:
        return len(batch)

    def loss_sum(self, batch: Pairs) -> LossSum:
        chosen_B, rejected_B = scalar(self.policy, batch.chosen + batch.rejected).chunk(2)
        margin_B = batch.margin_B.to(chosen_B) * self.use_margin
        total = (
            bradley_terry(chosen_B, rejected_B, margin_B) + self.centring_coef * centring(chosen_B, rejected_B)
        ).sum()
        gap_B = (chosen_B - rejected_B).detach()
        pairs = len(batch)
        metrics = {
            "accuracy": Mean(share_above(gap_B), pairs),
            "margin": Mean(gap_B.sum(), pairs),
            "reward/chosen": Mean(chosen_B.detach().sum(), pairs),
            "reward/rejected": Mean(rejected_B.detach().sum(), pairs),
        }
        # The signed gap of each confidence bin adds up over batches; `derived` makes the calibration error of them.
        for index, (_, confidence, right) in enumerate(bin_sums(gap_B).tolist()):
            metrics[f"_bin/{index}"] = Mean(confidence - right, pairs)
        return LossSum(total, metrics)

    def derived(self, metrics: dict[str, float]) -> dict[str, float]:
        return {"calibration_error": sum(abs(value) for name, value in metrics.items() if name.startswith("_bin/"))}
