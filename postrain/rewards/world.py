"""The gold score of the bundled world (its known ground truth) as a verifiable reward, in total or by parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from postrain.errors import ConfigError, MissingColumn
from postrain.formatting import available_columns
from postrain.rewards.base import none_to_nan
from postrain.types import RewardBatch
from postrain.world import gold


@dataclass(frozen=True, kw_only=True)
class Gold:
    """The weighted sum of the gold parts of a row; a row with none of them is unscorable.

    Every part of the gold score is logged, weighted or not, so that neglected parts are visible.
    """

    weights: Mapping[str, float]
    """Weight of each part: total, or mood, correct, format, polite, non_repetition, fluency, ..."""

    def __post_init__(self) -> None:
        known = ("total", *gold.CHECKS)
        unknown = [part for part in self.weights if part not in known]
        if unknown or not self.weights:
            raise ConfigError(
                f"reward.weights: expected some of {', '.join(known)}, got {', '.join(unknown) or 'none'}"
            )

    def to(self, device: torch.device | str) -> None:
        """Nothing to move."""

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], columns: Sequence[Mapping[str, Any]]
    ) -> RewardBatch:
        scores = [
            {} if (specification := _specification(row)) is None else gold.score(prompt, completion, specification)
            for prompt, completion, row in zip(prompts, completions, columns, strict=True)
        ]
        names = sorted({name for score in scores for name in score})
        # "total" is the name of the reward itself.
        logged_as = {name: "gold" if name == "total" else name for name in names}
        parts = {logged_as[name]: tuple(score.get(name) for score in scores) for name in names}
        return RewardBatch(none_to_nan([self._weighted(score) for score in scores]), parts)

    def _weighted(self, score: Mapping[str, float]) -> float | None:
        present = [weight * score[part] for part, weight in self.weights.items() if part in score]
        return sum(present) if present else None


def _specification(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    if "gold" not in row:
        raise MissingColumn(
            f"reward: the world's gold score needs the column gold, and the prompts have {available_columns(row)}; "
            "use data=world_... or another reward"
        )
    return row["gold"]
