"""Calibration: whether a model that gives its answer probability p is right in a share p of cases.

Axes: B answers, K bins of confidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from postrain.evaluation.accuracy import NEEDED, verdicts
from postrain.evaluation.completions import complete, first_prompt
from postrain.evaluation.measures import Estimate, Finding, Subject
from postrain.evaluation.scores import written
from postrain.methods.metrics import confidence_bins, expected_calibration_error
from postrain.rewards.base import Reward
from postrain.types import ConfigError, Count


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Expected calibration `error` of greedy answers: ten bins by the probability the model gives its whole completion,
    against the share that is right (Guo et al. 2017); beside it their means, `confidence` and `accuracy`.

    The error is never below 0, and of few answers it is too large: it shrinks with their number.
    """

    reward: Reward
    """What finds an answer right."""
    threshold: float = 1.0
    """The reward from which an answer is right."""
    prompts: Count = 64
    """Held-out prompts at most."""

    def __call__(self, subject: Subject) -> Finding:
        rollouts = complete(subject, self.prompts, likeliest=True)
        try:
            found = verdicts(rollouts, self.reward, self.threshold)
        except ConfigError:
            return Finding(metrics={}, notes=(NEEDED,))
        # Greedy completions are recorded with their log-probabilities at temperature 1.
        confidences = rollouts.logps_BT.double().sum(1).exp().tolist()
        known = [(sure, right) for sure, right in zip(confidences, found, strict=True) if right is not None]
        if not known:
            return Finding(metrics={}, notes=(NEEDED,))
        records = [
            {} if right is None else {"confidence": sure, "accuracy": right}
            for sure, right in zip(confidences, found, strict=True)
        ]
        return Finding(
            metrics={
                "error": calibration_error(*zip(*known, strict=True)),
                "confidence": Estimate.mean([sure for sure, _ in known], 0, 1),
                "accuracy": Estimate.share([right for _, right in known]),
            },
            example=first_prompt(subject, rollouts),
            records=written(rollouts, records),
        )


def calibration_error(confidences: Sequence[float], rights: Sequence[float]) -> Estimate:
    """The expected calibration error of at least one answer, with a jackknife interval; `rights` are 1, 0 or between.

    Leave out what is no answer: a confidence of 0 in none would be borne out each time.
    """
    sure_B, right_B = torch.tensor(confidences).double(), torch.tensor(rights).double()
    sums_K3 = confidence_bins(sure_B, right_B)
    alone = [confidence_bins(sure_B[at : at + 1], right_B[at : at + 1]) for at in range(len(sure_B))]
    without = [expected_calibration_error(sums_K3 - one_K3) for one_K3 in alone]
    return Estimate.jackknife(expected_calibration_error(sums_K3), without, 0, 1)
