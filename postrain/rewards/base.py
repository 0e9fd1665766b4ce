"""What a reward and a preference are: text and rows in, numbers out; and several rewards paid as one.

They know no tokenizer and no model of the policy's.

Axes: B completions, K parts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from postrain.errors import ConfigError
from postrain.types import RewardBatch

Texts = Sequence[str]
Columns = Sequence[Mapping[str, Any]]


class Reward(Protocol):
    """Scores completions of prompts."""

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], columns: Sequence[Mapping[str, Any]]
    ) -> RewardBatch:
        """Rewards in order; `columns` holds whatever else each prompt's record said (an answer, a gold score)."""
        ...

    def to(self, device: torch.device | str) -> None:
        """Moves what computes, if anything does, to where the policy is."""
        ...


@runtime_checkable
class PreferenceModel(Protocol):
    """Says how likely one completion of a prompt is preferred to another.

    Unlike a reward it need not put completions in any order: rock, paper and scissors beat each other in a circle.
    """

    def compare(self, prompts: Texts, first: Texts, second: Texts, columns: Columns) -> Tensor:
        """P(first is preferred to second | prompt), float32 [B] in [0, 1]; NaN where it cannot tell."""
        ...

    def to(self, device: torch.device | str) -> None:
        """Moves what computes, if anything does, to where the policy is."""
        ...


def is_model_based(reward: object) -> bool:
    """Whether a reward is a model's opinion, by its attribute `model_based`: it may choose among completions, but
    does not say what is right. Without one it verifies; a reward that is a plain function has none."""
    return bool(getattr(reward, "model_based", False))


def none_to_nan(values: Sequence[float | None]) -> Tensor:
    """[B] float32, NaN where a value is None."""
    return torch.tensor([float("nan") if value is None else value for value in values], dtype=torch.float32)


def nan_to_none(total_B: Tensor) -> tuple[float | None, ...]:
    """The reverse of `none_to_nan`: None where NaN."""
    return tuple(None if value != value else value for value in total_B.tolist())


def per_completion(value: Mapping[str, Any] | str | Sequence[Any], count: int) -> list[Any]:
    """A column as it is; one mapping, or the JSON text of one, once for each completion."""
    return [value] * count if isinstance(value, Mapping | str) else list(value)


def preflight(total_B: Tensor) -> None:
    """Refuse rewards that tell no completion from another: training on them would change nothing, and say nothing."""
    scored_B = total_B[~total_B.isnan()]
    if scored_B.isinf().any():
        raise ConfigError("reward: a pre-flight completion scored infinity; a reward is a finite number, or None")
    if not len(scored_B):
        raise ConfigError(
            f"reward: none of the {len(total_B)} pre-flight completions could be scored; check that the data has the "
            "columns the reward reads"
        )
    if len(scored_B) > 1 and float(scored_B.max() - scored_B.min()) == 0.0:
        raise ConfigError(
            f"reward: all {len(scored_B)} pre-flight completions scored {float(scored_B[0]):g}, and a constant reward "
            "trains nothing; choose a reward in which this model's samples differ, an easier task, or a higher "
            "temperature"
        )


@dataclass(frozen=True, kw_only=True)
class WeightedSum:
    """Pays the sum of weight times part.

    A part that cannot score a completion (None) adds nothing to it, as if it were 0: a sum must not jump because one
    judge is silent, so parts are best centred on 0. Only a completion that no part can score is unscorable itself.
    """

    parts: Mapping[str, Reward]
    """The rewards by name; each is logged by its name."""
    weights: Mapping[str, float]
    """The weight of each reward in the sum, by the same names."""

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
    def model_based(self) -> bool:
        """Whether a model's opinion is one of the parts."""
        return any(map(is_model_based, self.parts.values()))

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
        told = {name: nan_to_none(rewards.total_B) for name, rewards in found.items()}
        for name, rewards in found.items():
            if len(rewards.parts) > 1:
                told |= {f"{name}/{inner}": values for inner, values in rewards.parts.items()}
        return RewardBatch(total_B, told)
