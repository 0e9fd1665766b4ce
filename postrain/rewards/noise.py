"""Noise: a verifier with known error rates, to see how many errors a method tolerates, and a reward of pure chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from postrain.errors import ConfigError
from postrain.rewards.base import Reward, columns_read, compares_group, is_model_based, nan_to_none, none_to_nan
from postrain.rewards.function import row_label
from postrain.seeds import derive_seed
from postrain.types import Fraction, RewardBatch, Seed

SEED_COLUMN = "sample_seed"


@dataclass(frozen=True, kw_only=True)
class Noisy:
    """A reward of 0 or 1 with errors at known rates, independent for each completion.

    An error depends on the seed that the completion was sampled with, so a resumed run repeats it; on its text, if it
    was not sampled. The part `clean` is the reward without errors, `flipped` the share of errors.
    """

    reward: Reward
    """The reward without errors."""
    false_positive: Fraction = 0.1
    """Probability that a reward of 0 becomes 1."""
    false_negative: Fraction = 0.1
    """Probability that a reward of 1 becomes 0."""
    seed: Seed = 0
    """Seed of the errors."""

    @property
    def model_based(self) -> bool:
        """See `is_model_based`."""
        return is_model_based(self.reward)

    @property
    def compares_group(self) -> bool:
        """See `compares_group`."""
        return compares_group(self.reward)

    @property
    def reads(self) -> frozenset[str]:
        """See `columns_read`."""
        return columns_read(self.reward) | {SEED_COLUMN}

    def to(self, device: torch.device | str) -> None:
        """Moves the reward."""
        self.reward.to(device)

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], columns: Sequence[Mapping[str, Any]]
    ) -> RewardBatch:
        found = self.reward(prompts, completions, columns)
        clean = nan_to_none(found.total_B)
        for index, value in enumerate(clean):
            if value not in (None, 0.0, 1.0):
                raise ConfigError(
                    f"reward.reward: scored {value:g} for {row_label(index, prompts, columns)}; errors are defined for "
                    "rewards of 0 or 1, such as reward@reward.reward=answer"
                )
        noisy = tuple(
            None if value is None else flip(value, draw, self.false_positive, self.false_negative)
            for value, draw in zip(clean, map(self._draw, prompts, completions, columns), strict=True)
        )
        flipped = tuple(None if one is None else float(one != other) for one, other in zip(clean, noisy, strict=True))
        return RewardBatch(none_to_nan(noisy), {**found.parts, "clean": clean, "flipped": flipped})

    def _draw(self, prompt: str, completion: str, row: Mapping[str, Any]) -> float:
        seed = row.get(SEED_COLUMN)
        return uniform(self.seed, "noise", derive_seed(0, f"{prompt}\0{completion}") if seed is None else seed)


def flip(value: float, draw: float, false_positive: float, false_negative: float) -> float:
    """A reward of 0 or 1, exchanged if the uniform number `draw` is below the error rate of its value."""
    return 1.0 - value if draw < (false_negative if value else false_positive) else value


def chance(completions: Sequence[str], sample_seed: Sequence[int], probability: float = 0.5) -> list[float]:
    """1 with a probability that does not depend on the completion, else 0: a control, since some models improve even
    with it (Shao et al. 2025, Spurious Rewards, arXiv 2506.10947)."""
    if not 0 < probability < 1:
        raise ConfigError(f"reward.arguments.probability: expected a number between 0 and 1, got {probability}")
    return [float(uniform(0, "chance", seed) < probability) for seed in sample_seed]


def uniform(seed: int, purpose: str, *indices: int) -> float:
    """A number from 0 to below 1, determined by its arguments."""
    return derive_seed(seed, purpose, *indices) / 2**63
