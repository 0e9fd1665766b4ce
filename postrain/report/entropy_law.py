"""The entropy law of RL: the reward of a run as a function of the policy's entropy (Cui et al. 2025, "The Entropy
Mechanism of Reinforcement Learning for Reasoning Language Models", arXiv 2505.22617).

    R = −a · exp(H) + b,   with the ceiling b − a at entropy 0

The law is linear in exp(H): ordinary least squares fits it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, linear_regression
from typing import Any

from postrain.errors import ConfigError
from postrain.jsonl import JsonLines, atomic_write_text
from postrain.runs.folder import writing

ENTROPY, REWARD = "entropy/exact", "reward/total"


def fitted(entropies: Sequence[float], rewards: Sequence[float]) -> tuple[float, float]:
    """a and b of at least two points with different entropies [nats per token]."""
    line = linear_regression([math.exp(one) for one in entropies], rewards)
    return -line.slope, line.intercept


def entropy_law(*, folder: str, run: str, first: float = 1 / 3) -> None:
    """Fits the law to the updates of the training run in the folder `run`; writes result.json into `folder`.

    Values: `a`, `b`, `ceiling` (b − a), `r2` (share of the rewards' variance that the law explains), `rmse` (error on
    the updates after the share `first`, with the law fitted to those before), `predicted` and `final` (the mean reward
    of the last tenth of the updates, by that law and measured), `entropy_first` and `entropy_last` (the mean entropy of
    the first and the last tenth). Raises ConfigError for a run of fewer than ten updates.
    """
    known = [one for one in JsonLines(Path(run, "metrics.jsonl")).read() if ENTROPY in one and REWARD in one]
    entropies, rewards = [one[ENTROPY] for one in known], [one[REWARD] for one in known]
    if len(known) < 10 or len(set(entropies)) < 2:
        raise ConfigError(f"{run}: {len(known)} updates with {ENTROPY} and {REWARD}; the law needs at least 10")
    output = Path(folder, "result.json")
    with writing(output):
        atomic_write_text(output, json.dumps({"values": _values(entropies, rewards, first)}, indent=2) + "\n")


def _values(entropies: Sequence[float], rewards: Sequence[float], first: float) -> dict[str, Any]:
    a, b = fitted(entropies, rewards)
    errors = [reward - (b - a * math.exp(entropy)) for entropy, reward in zip(entropies, rewards, strict=True)]
    mean = fmean(rewards)
    spread = sum((reward - mean) ** 2 for reward in rewards)
    start, tail = max(2, round(first * len(rewards))), max(1, len(rewards) // 10)
    early_a, early_b = fitted(entropies[:start], rewards[:start])
    predicted = [early_b - early_a * math.exp(entropy) for entropy in entropies[start:]]
    later = [one - other for one, other in zip(predicted, rewards[start:], strict=True)]
    return {
        "a": a,
        "b": b,
        "ceiling": b - a,
        "r2": 1 - sum(error * error for error in errors) / spread if spread else 0.0,
        "rmse": math.sqrt(fmean(error * error for error in later)),
        "predicted": fmean(predicted[-tail:]),
        "final": fmean(rewards[-tail:]),
        "entropy_first": fmean(entropies[:tail]),
        "entropy_last": fmean(entropies[-tail:]),
    }
