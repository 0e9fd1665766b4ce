"""Base of methods trained on preferences between sampled completions; logs the win rate against the reference.

A preference gives P(a beats b). With a reward, P(a beats b) is a sigmoid of the difference of the rewards. Truncated
completions can be penalised (with a reward) or excluded from all comparisons.

Axes: P prompts, G completions of a prompt, B completions, prompt-major.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from postrain.data.kinds.prompt import Prompts
from postrain.errors import ConfigError
from postrain.hardware.shares import Share
from postrain.methods.metrics import Metrics, positive
from postrain.methods.online import Online
from postrain.rollout.collect import Rollouts
from postrain.types import Count, Mean, Positive, Size


class OnlinePreference(Online):
    """Base of OnlineDPO and NashMD, which are trained on preferences between two completions."""

    accepts_preferences: ClassVar[bool] = True
    expected_change: ClassVar[tuple[str, float]] = ("eval/win_rate", 0.1)
    headline: ClassVar[tuple[str, str, str]] = ("loss", "completion/length", "eval/win_rate")

    updates: Count = 30
    batch_size: Size = 32
    group_size: Size = 2
    """Completions of each prompt; method.batch_size counts prompts."""
    beta: Positive = 0.1
    """KL coefficient β: larger values keep the policy closer to the reference."""
    preference_temperature: Positive = 0.1
    """With a reward: temperature τ of the preference P(a beats b) = σ((r(a) − r(b)) / τ). Smaller values make wins
    clearer and ties rarer; the winner stays the same."""

    def needs_reference(self) -> bool:
        return True

    def on_model_attached(self) -> None:
        super().on_model_attached()
        self.reference_rollouts: dict[int, Rollouts] = {}

    def check(self) -> None:
        super().check()
        if self.missing_eos_penalty and self.components.preference is not None:
            raise ConfigError(
                f"method.missing_eos_penalty={self.missing_eos_penalty:g} is subtracted from a reward, and "
                f"{type(self.components.preference).__name__} only compares completions; use "
                "method.mask_truncated_completions=true, or a reward that scores completions"
            )

    def preferences(self, some: Rollouts, others: Rollouts) -> Tensor:
        """P(completion i of `some` beats completion j of `others`) for each prompt, [P, G, G].

        Includes the method's penalties. NaN if one of the two is masked or the comparison failed.
        """
        size = self.group_size
        some, others = (replace(one, reward_B=self.shaped_rewards(one)) for one in (some, others))
        one, other = all_pairs(some, others, size)
        masked_B = self.truncated_and_masked(one) | self.truncated_and_masked(other)
        return self.preference(one, other).masked_fill(masked_B, torch.nan).view(-1, size, size)

    def preference(self, one: Rollouts, other: Rollouts) -> Tensor:
        """P(a completion beats the other of the same prompt), NaN if the comparison failed, [B]."""
        if self.components.preference is None:
            return torch.sigmoid((one.reward_B - other.reward_B) / self.preference_temperature)
        wins_B = self.components.preference.compare(one.prompts, one.completions, other.completions, one.columns)
        return wins_B.to(self.device)

    def evaluate(self, batch: Prompts, index: int, share: Share) -> Metrics:
        """Win rate of the policy's completions of held-out prompts against the reference's, with the same seeds."""
        if index not in self.reference_rollouts:
            with self.reference_policy.scoring() as frozen:
                self.reference_rollouts[index] = self.sample_held_out(frozen, batch, "win_rate", index, share)
        rollouts = self.sample_held_out(self.policy, batch, "win_rate", index, share)
        if not share.counts:
            return {}
        beats_B = self.preference(rollouts, self.reference_rollouts[index])
        known_B = beats_B[~beats_B.isnan()]
        return {
            "win_rate": Mean(positive(known_B - 0.5).sum(), len(known_B)),
            "preference": Mean(known_B.sum(), len(known_B)),
        }


def all_pairs(some: Rollouts, others: Rollouts, size: int) -> tuple[Rollouts, Rollouts]:
    """All pairs of a completion of `some` and one of `others` for the same prompt, G · G pairs per prompt."""
    rows = range(len(some))
    first = [row for row in rows for _ in range(size)]
    second = [row // size * size + other for row in rows for other in range(size)]
    return some.select(first), others.select(second)
