"""The protocols of rewards and preference models, and the weighted sum of several rewards.

Both take text and the columns of rows, and return numbers. They use neither the policy nor its tokenizer.

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
        """One reward per completion; `columns` are the other columns of each prompt's row (answer, gold score)."""
        ...

    def to(self, device: torch.device | str) -> None:
        """Moves the weights, if there are any, to the device of the policy."""
        ...


@runtime_checkable
class PreferenceModel(Protocol):
    """The probability that one completion of a prompt is preferred to another.

    Unlike a reward it need not order completions: preferences may be intransitive, as in rock-paper-scissors.
    """

    def compare(self, prompts: Texts, first: Texts, second: Texts, columns: Columns) -> Tensor:
        """P(first is preferred to second | prompt), float32 [B] in [0, 1]; NaN where it is unknown."""
        ...

    def to(self, device: torch.device | str) -> None:
        """Moves the weights, if there are any, to the device of the policy."""
        ...


def scores_completions(target: object) -> bool:
    """Whether a class of rewards scores single completions; False for one that only compares two."""
    # `callable(cls)` is true for every class; whether its objects are callable is defined in the class.
    return not isinstance(target, type) or any("__call__" in vars(base) for base in target.__mro__)


def is_model_based(reward: object) -> bool:
    """Whether a reward is the score of a model (its attribute `model_based`, default False), not a verifiable reward.

    A model-based reward may rank completions, but does not decide which are correct.
    """
    return bool(getattr(reward, "model_based", False))


SAMPLED_COLUMNS = ("completion_ids", "token_ids", "logps", "sample_seed", "self_certainty")
"""What a reward can read of sampled completions besides the columns of the data, which they precede:

- completion_ids, token_ids: the token ids of the policy, end token included, a list of integers
- logps: the log-probability of each of these tokens, as recorded while sampling, a list of floats
- sample_seed: the seed that the completion was sampled with, an integer
- self_certainty: the mean over its tokens of KL(uniform ‖ policy), in nats
"""


def columns_read(reward: object) -> frozenset[str]:
    """The SAMPLED_COLUMNS that a reward reads (its attribute `reads`, default none)."""
    return frozenset(getattr(reward, "reads", ()))


def compares_group(reward: object) -> bool:
    """Whether a reward compares the completions of a prompt (its attribute `compares_group`, default False)."""
    return bool(getattr(reward, "compares_group", False))


def is_verifiable(reward: object) -> bool:
    """Whether a reward decides which completions are correct, from their text and their row alone."""
    return not is_model_based(reward) and not columns_read(reward)


def none_to_nan(values: Sequence[float | None]) -> Tensor:
    """[B] float32, NaN where a value is None."""
    return torch.tensor([float("nan") if value is None else value for value in values], dtype=torch.float32)


def nan_to_none(total_B: Tensor) -> tuple[float | None, ...]:
    """The reverse of `none_to_nan`: None where NaN."""
    return tuple(None if value != value else value for value in total_B.tolist())


def per_completion(value: Mapping[str, Any] | str | Sequence[Any], count: int) -> list[Any]:
    """A column unchanged; a single mapping, or its JSON text, repeated for each completion."""
    return [value] * count if isinstance(value, Mapping | str) else list(value)


def preflight(total_B: Tensor) -> None:
    """Raise ConfigError for rewards that are constant, infinite or all missing: training on them has no effect."""
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
    """The weighted sum of several rewards.

    A part that cannot score a completion (None) counts as 0, so parts are best centred on 0. A completion is
    unscorable only if no part can score it.
    """

    parts: Mapping[str, Reward]
    """The rewards by name; each is logged under its name."""
    weights: Mapping[str, float]
    """The weight of each reward in the sum, by the same names."""

    def __post_init__(self) -> None:
        if not self.parts or set(self.parts) != set(self.weights):
            raise ConfigError(
                f"reward.weights: expected one weight for each of reward.parts ({', '.join(self.parts) or 'none'}), "
                f"got {', '.join(self.weights) or 'none'}"
            )
        not_finite = [name for name, weight in self.weights.items() if not math.isfinite(weight)]
        if not_finite:
            raise ConfigError(
                f"reward.weights.{not_finite[0]}: expected a finite number, got {self.weights[not_finite[0]]}"
            )

    @property
    def model_based(self) -> bool:
        """Whether a part is model-based."""
        return any(map(is_model_based, self.parts.values()))

    @property
    def compares_group(self) -> bool:
        """Whether a part compares the completions of a prompt."""
        return any(map(compares_group, self.parts.values()))

    @property
    def reads(self) -> frozenset[str]:
        """What its parts read; see `columns_read`."""
        return frozenset().union(*map(columns_read, self.parts.values()))

    def to(self, device: torch.device | str) -> None:
        """Moves every part."""
        for part in self.parts.values():
            part.to(device)

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], columns: Sequence[Mapping[str, Any]]
    ) -> RewardBatch:
        results = {name: part(prompts, completions, columns) for name, part in self.parts.items()}
        weighted_KB = torch.stack([self.weights[name] * rewards.total_B for name, rewards in results.items()])
        unscored_B = weighted_KB.isnan().all(0)
        total_B = weighted_KB.nansum(0).masked_fill(unscored_B, float("nan"))
        parts = {name: nan_to_none(rewards.total_B) for name, rewards in results.items()}
        for name, rewards in results.items():
            if len(rewards.parts) > 1:
                parts |= {f"{name}/{inner}": values for inner, values in rewards.parts.items()}
        return RewardBatch(total_B, parts)
