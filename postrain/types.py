"""The values that pass between the rooms, and the shape legend they share; each kind of record has its own batch
(data/kinds/).

Axes: B items of a batch, L tokens of a row (ragged), T supervised tokens of a row (left-aligned, padded to the
longest of the batch), N supervised tokens of a whole batch (flat), V vocabulary, D model width, P prompts,
G completions of a prompt. Tensors carry their axes as a suffix: `logps_BT`, `margin_B`.

Nothing here imports lightning, hydra or transformers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal, Self

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor

from postrain.errors import ConfigError

# The ranges a YAML value can be held to; check.py reads them off the constructors.
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Interval(ge=0, le=1)]
Count = Annotated[int, Interval(ge=1, le=1_000_000_000)]
CountOrZero = Annotated[int, Interval(ge=0, le=1_000_000_000)]
# Of what is kept in memory all at once: rows of a batch, completions, tokens of a completion.
Size = Annotated[int, Interval(ge=1, le=1_000_000)]
# Processes, threads, requests under way at once.
Workers = Annotated[int, Interval(ge=1, le=1024)]
# How a learning rate changes after its warm-up.
LRSchedule = Literal["constant", "linear", "cosine"]
# What torch.Generator takes.
Seed = Annotated[int, Interval(ge=0, le=2**63 - 1)]


@dataclass(frozen=True)
class Batch:
    """Base of every batch: each field is a tensor with leading axis B, a tuple of length B, or another Batch."""

    def __len__(self) -> int:
        value = getattr(self, fields(self)[0].name)
        return len(value)

    def select(self, index: Sequence[int]) -> Self:
        """The items at `index`, in that order."""
        return replace(self, **{f.name: _select(getattr(self, f.name), index) for f in fields(self)})

    def to(self, device: torch.device | str) -> Self:
        """The same batch with every tensor on `device`."""
        return replace(self, **{f.name: _to(getattr(self, f.name), device) for f in fields(self)})

    def cost(self) -> list[int]:
        """Tokens that scoring each item runs through the model, [B]; micro-batches are cut by it."""
        costs = [value.cost() for f in fields(self) if isinstance(value := getattr(self, f.name), Batch)]
        return [sum(item) for item in zip(*costs, strict=True)]

    def narrowed(self, width: int) -> Self:
        """The same items with their [B, T] tensors cut to the `width` that scoring these rows alone gives."""
        wide = [f.name for f in fields(self) if f.name.endswith("_BT")]
        return replace(self, **{name: getattr(self, name)[:, :width] for name in wide})

    def prompt_groups(self) -> Sequence[int] | None:
        """Items of one record, which share its prompt, have one number, [B]; None where records are unknown."""
        rows = next((value for f in fields(self) if isinstance(value := getattr(self, f.name), Rows)), self)
        return getattr(rows, "row_ids", None)


def _select(value: Any, index: Sequence[int]) -> Any:
    if isinstance(value, Batch):
        return value.select(index)
    if isinstance(value, Tensor):
        return value[torch.as_tensor(index, dtype=torch.long, device=value.device)]
    return None if value is None else tuple(value[i] for i in index)


def _to(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Batch | Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(_to(item, device) for item in value)
    return value


@dataclass(frozen=True)
class Rows(Batch):
    """Token rows with the positions that count: what scoring.py runs through a model.

    They stay on the CPU, where they are sorted, packed and counted; tokens are moved where a model runs.
    """

    ids: tuple[Tensor, ...]
    """Token ids of each row, prompt and completion together; int64 [L]."""
    supervised: tuple[Tensor, ...]
    """True where the token itself is learned or scored, given everything before it; bool [L]; never at position 0."""
    row_ids: tuple[int, ...]
    """The record each row came from, by its number in the source, for error messages and samples."""

    def __add__(self, other: Rows) -> Rows:
        """These rows and then those, to be run through a model together."""
        return Rows(self.ids + other.ids, self.supervised + other.supervised, self.row_ids + other.row_ids)

    def to(self, device: torch.device | str) -> Self:
        return self

    def cost(self) -> list[int]:
        return [len(ids) for ids in self.ids]


@dataclass(frozen=True)
class Sampling:
    """How a policy is sampled."""

    max_new_tokens: Count
    temperature: NonNegative = 1.0
    """0 is greedy."""
    top_k: CountOrZero = 0
    """0 is off."""
    top_p: Annotated[float, Interval(gt=0, le=1)] = 1.0
    min_p: Fraction = 0.0
    """Tokens less likely than this share of the likeliest one are not drawn; 0 is off."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion, besides the template's end tokens; they stay part of it."""

    def __post_init__(self) -> None:
        if "" in self.stop:
            raise ConfigError("rollout.stop: an empty text ends nothing; name texts, or give [] for none")


@dataclass(frozen=True)
class Stop:
    """End tokens and texts of a completion; they stay part of it."""

    ids: tuple[int, ...]
    """End tokens."""
    texts: tuple[str, ...] = ()
    """Texts that end a completion."""
    decode: Callable[[Sequence[int]], str] | None = None
    """Text of token ids, special tokens and all; needed for `texts`."""
    limits: tuple[int, ...] | None = None
    """Tokens each row gets at most, where that is fewer than max_new_tokens: what earlier turns have left of them."""


@dataclass(frozen=True)
class Completion:
    """One sampled continuation of a prompt."""

    ids: Tensor
    """Token ids, the end-of-sequence token included when it was drawn; int64 [T]."""
    logps: Tensor
    """Log-probability of each token under the distribution it was drawn from, float32 [T]."""
    finished: bool
    """True when it ended by an end token or a stop text, False when it was cut at max_new_tokens."""


@dataclass(frozen=True)
class Step:
    """An environment's answer to a turn of the policy."""

    observation: str
    """Text appended after the turn; the policy conditions on it, and it is masked in the loss."""
    state: Any
    """What the environment is given at the next turn."""
    reward: float | None = None
    """The reward of this turn, if there is one."""
    done: bool = False
    """True when the episode is over."""
    error: bool = False
    """True when the turn asked for something the environment cannot do."""


@dataclass(frozen=True)
class RewardBatch:
    """Rewards of a batch of completions."""

    total_B: Tensor
    """The total reward, float32 [B]; NaN where no part could score the completion."""
    parts: Mapping[str, tuple[float | None, ...]]
    """Each named part before weighting, [B]; None where it could not score."""


@dataclass
class Mean:
    """A mean as its total and count, which add up over micro-batches, mini-batches and ranks.

    Not torchmetrics' MeanMetric: an update of that takes 160 µs where this takes 3, its sums are float32, and each
    metric is gathered by itself, where all metrics of an update cross the ranks at once here.
    """

    total: Tensor | float
    count: Tensor | float

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)

    def value(self) -> float:
        """The mean, 0 when nothing was counted."""
        return float(self.total) / float(self.count) if float(self.count) else 0.0


@dataclass
class Max:
    """A maximum, added up like a Mean; NaN stays NaN, which torchmetrics' MaxMetric leaves out."""

    peak: Tensor | float

    def __add__(self, other: Max) -> Max:
        peaks = float(self.peak), float(other.peak)
        return Max(math.nan if any(map(math.isnan, peaks)) else max(peaks))

    def value(self) -> float:
        """The maximum."""
        return float(self.peak)


@dataclass(frozen=True)
class LossSum:
    """A loss summed (not averaged) over a micro-batch; the training loop divides by the step's global count."""

    total: Tensor
    """Scalar, differentiable."""
    metrics: Mapping[str, Mean | Max]
    """What to log, each with its own count."""
