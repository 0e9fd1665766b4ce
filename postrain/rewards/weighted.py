"""Several rewards paid as one, each part still told by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from postrain.rewards.base import Reward, is_guess, optional
from postrain.types import ConfigError, RewardBatch


@dataclass(frozen=True, kw_only=True)
class WeightedSum:
    """Pays the sum of weight times part.

    A part that cannot score a completion (None) adds nothing to it, as if it were 0: a sum must not jump because one
    judge is silent, so parts are best centred on 0. Only a completion that no part can score is unscorable itself.
    """

    parts: Mapping[str, Reward]
    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        if not self.parts or set(self.parts) != set(self.weights):
            raise ConfigError(
                f"reward.weights: expected one weight for each of reward.parts ({', '.join(self.parts) or 'none'}), "
                f"got {', '.join(self.weights) or 'none'}"
            )
        endless = [name for name, weight in self.weights.items() if not math.isfinite(weight)]
        if endless:
            raise ConfigError(f"reward.weights.{endless[0]}: expected a finite number, got {self.weights[endless[0]]}")

    @property
    def guess(self) -> bool:
        """Whether a model's opinion is one of the parts."""
        return any(map(is_guess, self.parts.values()))

    def to(self, device: torch.device | str) -> None:
        """Moves every part."""
        for part in self.parts.values():
            part.to(device)

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], columns: Sequence[Mapping[str, Any]]
    ) -> RewardBatch:
        found = {name: part(prompts, completions, columns) for name, part in self.parts.items()}
        paid_KB = torch.stack([self.weights[name] * rewards.total_B for name, rewards in found.items()])
        unscored_B = paid_KB.isnan().all(0)
        total_B = paid_KB.nansum(0).masked_fill(unscored_B, float("nan"))
        told = {name: optional(rewards.total_B) for name, rewards in found.items()}
        for name, rewards in found.items():
            if len(rewards.parts) > 1:
                told |= {f"{name}/{inner}": values for inner, values in rewards.parts.items()}
        return RewardBatch(total_B, told)
