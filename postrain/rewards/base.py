"""What a reward is: text and rows in, numbers out. It knows no tokenizer and no model of the policy's.

Axes: B completions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from postrain.types import ConfigError, RewardBatch


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


def is_guess(reward: object) -> bool:
    """Whether a reward is a model's opinion, by its attribute `guess`: it may choose among completions, but does not
    say what is right. Without one it verifies; a reward that is a plain function has none."""
    return bool(getattr(reward, "guess", False))


def total_of(values: Sequence[float | None]) -> Tensor:
    """[B] float32, NaN where a value is None."""
    return torch.tensor([float("nan") if value is None else value for value in values], dtype=torch.float32)


def optional(total_B: Tensor) -> tuple[float | None, ...]:
    """The reverse of `total_of`: None where NaN."""
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
