"""Kahneman-Tversky optimisation on single completions with a desirable or undesirable label: the loss depends on the
log-ratio to the reference relative to a KL baseline (Ethayarajh et al. 2024). `losses.kto` is the loss.

Axes: B labelled completions, T completion tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from postrain import losses
from postrain.data.kinds.unpaired_preference import UnpairedPreferences
from postrain.errors import ConfigError
from postrain.hardware import collectives
from postrain.methods.learning_rates import LearningRates
from postrain.methods.metrics import positive
from postrain.methods.reference_cache import LogpsByRow, lookup
from postrain.methods.reference_model import ReferenceModelMixin
from postrain.models.scoring import score
from postrain.types import Batch, LossSum, Max, Mean, Positive, Rows, Size


@dataclass(frozen=True)
class UnpairedPreferencesWithReference(Batch):
    """Labelled completions with all constants of the loss."""

    rows: Rows
    label_B: Tensor
    ref_logps: tuple[Tensor, ...]
    """Log-probabilities under the reference, [T] each."""
    baseline_B: Tensor
    """The KL baseline z, the same for the global batch."""


class KTO(ReferenceModelMixin):
    """Trains a policy on single completions with a desirable or undesirable label (Ethayarajh et al. 2024).

        loss = w · (1 − σ(±β (log π/π_ref − z)))      a mean over completions, + for desirable, − for undesirable

    w is the weight of the label, z the KL baseline: the mean log-ratio of mismatched completions, at least 0.
    """

    kind: ClassVar[str] = "UnpairedPreference"
    expected_change: ClassVar[tuple[str, float]] = ("eval/accuracy", 0.15)
    headline: ClassVar[tuple[str, str, str]] = ("loss", "accuracy", "eval/accuracy")
    rates: ClassVar[LearningRates] = LearningRates(base=1e-6, nano=2e-4)

    batch_size: Size = 32
    loss: Literal["kto", "apo_zero_unpaired"] = "kto"
    """kto: with the KL baseline z. apo_zero_unpaired: APO-zero, z = 0."""
    beta: Positive = 0.1
    """KL coefficient β: larger values keep the policy closer to the reference."""
    desirable_weight: Positive = 1.0
    """Weight λ_D of completions with a desirable label."""
    undesirable_weight: Positive = 1.0
    """Weight λ_U of completions with an undesirable label."""

    def on_model_attached(self) -> None:
        super().on_model_attached()
        if self.batch_size == 1:
            raise ConfigError("method.batch_size=1: KTO's baseline is a mean over a batch; give at least 2, better 16")

    def denominator(self, batch: UnpairedPreferencesWithReference) -> int:
        return len(batch)

    def reference_batch(self, batch: Batch) -> Batch:
        assert isinstance(batch, UnpairedPreferences)
        return batch if self.loss == "kto" else batch.rows

    def prepare(self, batch: UnpairedPreferences) -> UnpairedPreferencesWithReference:
        known = self.reference_logps_of(self.reference_batch(batch))
        baseline_B = self.baseline(batch, known).expand(len(batch))
        return UnpairedPreferencesWithReference(batch.rows, batch.label_B, lookup(known, batch.rows), baseline_B)

    def baseline(self, batch: UnpairedPreferences, known: LogpsByRow) -> Tensor:
        """The KL baseline z, from prompts paired with the completion of another prompt."""
        if self.loss != "kto":
            return torch.zeros((), device=batch.label_B.device)
        policy = self.logps_by_row(self.policy, batch.unrelated)
        log_ratio_B = summed(lookup(policy, batch.unrelated)) - summed(lookup(known, batch.unrelated))
        sums = torch.stack([log_ratio_B.sum(), torch.ones_like(log_ratio_B).sum()]).to(batch.label_B.device)
        return losses.kto_baseline(*collectives.all_sum(sums))

    def loss_sum(self, batch: UnpairedPreferencesWithReference) -> LossSum:
        scores, label_B, count = score(self.policy, batch.rows), batch.label_B, len(batch)
        log_ratio_BT = scores.logps_BT - pad_sequence(list(batch.ref_logps), batch_first=True).to(scores.logps_BT)
        log_ratio_B = log_ratio_BT.sum(1)
        loss_B = losses.kto(
            log_ratio_B,
            label_B,
            batch.baseline_B,
            beta=self.beta,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
            reduction="none",
        )
        above_B = self.beta * (log_ratio_B - batch.baseline_B).detach()
        metrics: dict[str, Mean | Max] = {
            "accuracy": Mean.of_rows(positive(torch.where(label_B, above_B, -above_B))),
            "kl/baseline": Mean(batch.baseline_B.sum(), count),
        }
        for name, labelled_B in (("desirable", label_B), ("undesirable", ~label_B)):
            found = int(labelled_B.sum())
            if not found:
                continue  # Without completions of this label, its mean and the margin are undefined.
            metrics[f"reward/{name}"] = Mean(self.beta * log_ratio_B.detach()[labelled_B].sum(), found)
            metrics[f"log_ratio/{name}"] = Mean(log_ratio_B.detach()[labelled_B].sum(), found)
            metrics[f"length/{name}"] = Mean(scores.mask_BT[labelled_B].sum(), found)
        return LossSum.of_rows(loss_B, metrics | self.log_ratio_metrics(log_ratio_BT))

    def log_ratio_metrics(self, log_ratio_BT: Tensor) -> dict[str, Mean | Max]:
        """The largest log-ratio of a token; empty with reference_free."""
        if self.reference_free:
            return {}
        largest = log_ratio_BT.detach().abs().max()
        self.check_initial_log_ratio(largest)
        return {"log_ratio_max": Max(largest)}

    def derived(self, metrics: dict[str, float]) -> dict[str, float]:
        if not metrics.keys() >= {"reward/desirable", "reward/undesirable"}:
            return {}
        return {"margin": metrics["reward/desirable"] - metrics["reward/undesirable"]}


def summed(logps: tuple[Tensor, ...]) -> Tensor:
    """Log-probability of each completion, [B]."""
    return torch.stack([logps_T.sum() for logps_T in logps])
