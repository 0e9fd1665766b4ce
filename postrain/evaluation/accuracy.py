"""Accuracy of answers by a verifiable reward, and calibration: whether answers of probability p are correct at rate p.

Axes: B answers, K bins of confidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from postrain.errors import ConfigError
from postrain.evaluation.completion_metrics import completion_records
from postrain.evaluation.completions import complete, first_prompt, reward_totals
from postrain.evaluation.estimate import Estimate, reaches
from postrain.evaluation.task import EvalModel, EvalResult
from postrain.methods.metrics import confidence_bins, expected_calibration_error
from postrain.rewards.base import Reward
from postrain.rollout.collect import Rollouts
from postrain.types import Count

NEEDS_ANSWERS = "needs prompts with the column answer, or another reward; data=world_sums and data=gsm8k have it"


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """The share of completions whose reward reaches the threshold, for `greedy` decoding and for `sampled` completions.

    Completions that cannot be scored are left out.
    """

    reward: Reward
    """The reward that verifies an answer."""
    threshold: float = 1.0
    """An answer is correct if its reward is at least this."""
    prompts: Count = 64
    """Maximum number of held-out prompts; one greedy and one sampled completion each."""

    def __call__(self, eval_model: EvalModel) -> EvalResult:
        rollouts_of = {
            "greedy": complete(eval_model, self.prompts, greedy=True),
            "sampled": complete(eval_model, self.prompts),
        }
        try:
            found = {
                decoding: verdicts(rollouts, self.reward, self.threshold) for decoding, rollouts in rollouts_of.items()
            }
        except ConfigError as error:
            has_answers = any("answer" in columns for columns in rollouts_of["greedy"].columns)
            return EvalResult(metrics={}, notes=(str(error) if has_answers else NEEDS_ANSWERS,))
        known = {decoding: [one for one in correct if one is not None] for decoding, correct in found.items()}
        if not all(known.values()):
            return EvalResult(metrics={}, notes=(NEEDS_ANSWERS,))
        both = zip(found["greedy"], found["sampled"], rollouts_of["sampled"].completions, strict=True)
        return EvalResult(
            metrics={decoding: Estimate.share(correct) for decoding, correct in known.items()},
            example=first_prompt(eval_model, rollouts_of["greedy"]),
            records=completion_records(
                rollouts_of["greedy"],
                [{"greedy": one, "sampled": other, "sampled_completion": text} for one, other, text in both],
            ),
        )


def verdicts(rollouts: Rollouts, reward: Reward, threshold: float) -> list[bool | None]:
    """Whether each completion is correct; None if it cannot be scored."""
    totals = reward_totals(reward, rollouts, rollouts.completions)
    return [None if total is None else reaches(total, threshold) for total in totals]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Expected calibration `error` of greedy answers (Guo et al. 2017): ten bins by the probability of the whole
    completion, compared with accuracy in each bin; and the means, `confidence` and `accuracy`.

    `auroc` is the probability that a correct answer has a higher confidence than a wrong one (0.5 is chance). It does
    not depend on the scale of the confidence and needs two correct and two wrong answers.

    The error is biased upwards for few answers.
    """

    reward: Reward
    """The reward that verifies an answer."""
    threshold: float = 1.0
    """An answer is correct if its reward is at least this."""
    prompts: Count = 64
    """Maximum number of held-out prompts."""

    def __call__(self, eval_model: EvalModel) -> EvalResult:
        rollouts = complete(eval_model, self.prompts, greedy=True)
        try:
            found = verdicts(rollouts, self.reward, self.threshold)
        except ConfigError:
            return EvalResult(metrics={}, notes=(NEEDS_ANSWERS,))
        # Greedy completions are recorded with their log-probabilities at temperature 1.
        confidences = rollouts.logps_BT.cpu().double().sum(1).exp().tolist()
        known = [(confidence, one) for confidence, one in zip(confidences, found, strict=True) if one is not None]
        if not known:
            return EvalResult(metrics={}, notes=(NEEDS_ANSWERS,))
        records = [
            {} if one is None else {"confidence": confidence, "accuracy": one}
            for confidence, one in zip(confidences, found, strict=True)
        ]
        correct = [one for _, one in known]
        return EvalResult(
            metrics={
                "error": calibration_error(*zip(*known, strict=True)),
                **({"auroc": auroc(*zip(*known, strict=True))} if 2 <= sum(correct) <= len(correct) - 2 else {}),
                "confidence": Estimate.mean([confidence for confidence, _ in known], 0, 1),
                "accuracy": Estimate.share(correct),
            },
            example=first_prompt(eval_model, rollouts),
            records=completion_records(rollouts, records),
        )


def calibration_error(confidences: Sequence[float], correctness: Sequence[float]) -> Estimate:
    """Expected calibration error of at least one answer, with a jackknife interval; `correctness` is in [0, 1].

    Leave out completions without an answer: their confidence of 0 would always be calibrated.
    """
    confidence_B, correct_B = torch.tensor(confidences).double(), torch.tensor(correctness).double()
    sums_K3 = confidence_bins(confidence_B, correct_B)
    alone = [confidence_bins(confidence_B[at : at + 1], correct_B[at : at + 1]) for at in range(len(confidence_B))]
    without = [expected_calibration_error(sums_K3 - one_K3) for one_K3 in alone]
    return Estimate.jackknife(expected_calibration_error(sums_K3), without, 0, 1)


def auroc(confidences: Sequence[float], correct: Sequence[bool]) -> Estimate:
    """Area under the ROC curve of confidence as a predictor of correct answers, with a jackknife interval; needs at
    least two correct and two wrong answers."""
    confidence_B, correct_B = torch.tensor(confidences).double(), torch.tensor(correct)

    def area(keep_B: Tensor) -> float:
        return float(binary_auroc(confidence_B[keep_B], correct_B[keep_B].long()))

    every_B = torch.arange(len(confidence_B))
    return Estimate.jackknife(area(every_B), [area(every_B[every_B != left]) for left in every_B], 0, 1)
