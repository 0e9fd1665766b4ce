"""Calibration: whether a model that gives its answer probability p is right in a share p of cases.

Axes: B answers, K bins of confidence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from postrain.calibration import confidence_sums, expected_error
from postrain.evaluation.accuracy import NEEDED, verdicts
from postrain.evaluation.completions import complete, first_prompt
from postrain.evaluation.measures import Estimate, Finding, Subject
from postrain.evaluation.scores import written
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
    threshold: float
    """The reward from which it is."""
    prompts: Count
    """Held-out prompts at most."""

    def __call__(self, subject: Subject) -> Finding:
        episodes = complete(subject, self.prompts, likeliest=True)
        try:
            found = verdicts(episodes, self.reward, self.threshold)
        except ConfigError:
            return Finding(metrics={}, notes=(NEEDED,))
        # Greedy completions are recorded with their log-probabilities at temperature 1.
        confidence_B = episodes.logps_BT.double().sum(1).exp().cpu()
        known = [place for place, right in enumerate(found) if right is not None]
        if not known:
            return Finding(metrics={}, notes=(NEEDED,))
        right = [bool(found[place]) for place in known]
        sure = confidence_B[known]
        records = [{"confidence": float(p), "accuracy": right} for p, right in zip(confidence_B, found, strict=True)]
        return Finding(
            metrics={
                "error": error(sure, torch.tensor(right)),
                "confidence": Estimate.mean(sure.tolist()),
                "accuracy": Estimate.share(right),
            },
            example=first_prompt(subject, episodes),
            records=written(episodes, records),
        )


def error(confidence_B: Tensor, right_B: Tensor) -> Estimate:
    """Expected calibration error, with a jackknife interval."""
    sums_K3 = confidence_sums(confidence_B, right_B)
    without = [
        expected_error(sums_K3 - confidence_sums(confidence_B[at : at + 1], right_B[at : at + 1]))
        for at in range(len(confidence_B))
    ]
    return Estimate.jackknife(expected_error(sums_K3), without).within(0, 1)
