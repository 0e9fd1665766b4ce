"""Process reward model: predicts whether a reasoning step is right, given the steps before it.

`losses.prm` is a binary cross-entropy per step on a scalar head, read at the last token of the step (Uesato et al.
2022, "Solving math word problems with process- and outcome-based feedback"; Lightman et al. 2023, "Let's verify step by
step"). Neutral labels are not supported.

Axes: B chains, S steps of a chain (left-aligned, padded to the longest of the batch).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from postrain import losses
from postrain.data.kinds.steps import StepRows
from postrain.methods.base import Method
from postrain.methods.learning_rates import LearningRates
from postrain.models.scoring import step_logits
from postrain.types import Count, LossSum, LRSchedule, Mean, Size


def first_error(wrong_BS: Tensor) -> Tensor:
    """Index of the first wrong step, [B]; S where no step is wrong."""
    return (~wrong_BS).long().cumprod(1).sum(1)


def up_to_first_error(labels_BS: Tensor, mask_BS: Tensor) -> Tensor:
    """True at the steps up to and including the first wrong one: later steps have no defined label."""
    first_B = first_error(~labels_BS & mask_BS)
    return mask_BS & (torch.arange(mask_BS.shape[1], device=mask_BS.device) <= first_B[:, None])


class PRM(Method):
    """Trains a process reward model: classifies each step of a solution as right or wrong (Uesato et al. 2022; Lightman
    et al. 2023).

        loss = −log p(label of the step | solution up to the end of the step)      a mean over steps: `losses.prm`
    """

    kind: ClassVar[str] = "Steps"
    head: ClassVar[Literal["causal", "scalar"]] = "scalar"
    expected_change: ClassVar[tuple[str, float]] = ("eval/step_accuracy", 0.1)
    headline: ClassVar[tuple[str, str, str]] = ("loss", "step_accuracy", "eval/step_accuracy")
    rates: ClassVar[LearningRates] = LearningRates(base=1e-5, nano=5e-4, kl=0.01)

    updates: Count = 80
    batch_size: Size = 32
    schedule: LRSchedule = "cosine"
    after_first_error: Literal["use", "ignore"] = "use"
    """use: train on all step labels. ignore: skip labels after the first wrong step. Metrics count all labels."""

    def labels_and_masks(self, batch: StepRows) -> tuple[Tensor, Tensor, Tensor]:
        """Labels, mask of real steps and mask of steps in the loss, bool [B, S] each."""
        labels_BS = pad_sequence(list(batch.labels), batch_first=True)
        steps_B = torch.tensor([len(labels) for labels in batch.labels], device=labels_BS.device)
        mask_BS = torch.arange(labels_BS.shape[1], device=labels_BS.device) < steps_B[:, None]
        used_BS = mask_BS if self.after_first_error == "use" else up_to_first_error(labels_BS, mask_BS)
        return labels_BS, mask_BS, used_BS

    def denominator(self, batch: StepRows) -> int:
        return int(self.labels_and_masks(batch)[2].sum())

    def loss_sum(self, batch: StepRows) -> LossSum:
        labels_BS, mask_BS, used_BS = self.labels_and_masks(batch)
        logits_BS = step_logits(self.policy, batch.rows)
        loss_BS = losses.prm(logits_BS, labels_BS, used_BS, reduction="none")
        metrics = accuracies(logits_BS.detach() > 0, labels_BS, mask_BS)
        return LossSum(loss_BS.sum(), metrics, (loss_BS.detach().sum(1), used_BS.sum(1)))

    def derived(self, metrics: dict[str, float]) -> dict[str, float]:
        """Baseline: the accuracy of always predicting the more frequent label."""
        share = metrics["positive_step_fraction"]
        return {"majority_accuracy": max(share, 1 - share)}


def accuracies(right_BS: Tensor, labels_BS: Tensor, mask_BS: Tensor) -> dict[str, Mean]:
    """Accuracies of steps, of whole chains and of the first wrong step of a chain; `right_BS` are predictions."""
    agree_BS = (right_BS == labels_BS) & mask_BS
    good_BS, bad_BS = labels_BS & mask_BS, ~labels_BS & mask_BS
    predicted_B, true_B = first_error(~right_BS & mask_BS), first_error(bad_BS)
    flawed_B = bad_BS.any(1)
    solved_B = (~right_BS & mask_BS).any(1) == flawed_B
    return {
        "step_accuracy": Mean.of_rows(agree_BS.sum(1), mask_BS.sum(1)),
        "step_accuracy/right": Mean((agree_BS & good_BS).sum(), good_BS.sum()),
        "step_accuracy/wrong": Mean((agree_BS & bad_BS).sum(), bad_BS.sum()),
        "first_error_accuracy": Mean(((predicted_B == true_B) & flawed_B).sum(), flawed_B.sum()),
        "solution_accuracy": Mean.of_rows(solved_B.float()),
        "positive_step_fraction": Mean(good_BS.sum(), mask_BS.sum()),
    }
