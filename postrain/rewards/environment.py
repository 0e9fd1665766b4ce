"""No reward of its own, for environments that give one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from postrain.types import RewardBatch


@dataclass(frozen=True, kw_only=True)
class NoReward:
    """0 for every completion: the reward is the one of the environment, logged as reward/environment."""

    def to(self, device: torch.device | str) -> None:
        """Nothing to move."""

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], columns: Sequence[Mapping[str, Any]]
    ) -> RewardBatch:
        return RewardBatch(torch.zeros(len(completions)), {})
