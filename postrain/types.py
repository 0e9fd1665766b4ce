"""Data types shared by all packages, and the shape legend. The batch of each kind of record is in data/kinds/.

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

# Ranges of config values; config/check.py reads them from the signatures of constructors.
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Interval(ge=0, le=1)]
OpenFraction = Annotated[float, Interval(gt=0, lt=1)]
PositiveFraction = Annotated[float, Interval(gt=0, le=1)]
Count = Annotated[int, Interval(ge=1, le=1_000_000_000)]
CountOrZero = Annotated[int, Interval(ge=0, le=1_000_000_000)]
# Numbers of objects held in memory together: rows of a batch, completions, tokens of a completion.
Size = Annotated[int, Interval(ge=1, le=1_000_000)]
# Processes, threads, concurrent requests.
Workers = Annotated[int, Interval(ge=1, le=1024)]
# What a model computes: the logits of a language model, or the score of a reward model.
Head = Literal["causal", "scalar"]
# The learning-rate schedule after warm-up.
LRSchedule = Literal["constant", "linear", "cosine"]
# The range that torch.Generator accepts.
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
        """Tokens of the forward pass for each item, [B]; micro-batches are split by it."""
        costs = [value.cost() for f in fields(self) if isinstance(value := getattr(self, f.name), Batch)]
        return [sum(item) for item in zip(*costs, strict=True)]

    def narrowed(self, width: int) -> Self:
        """The same items with their [B, T] tensors truncated to the first `width` tokens."""
        wide = [f.name for f in fields(self) if f.name.endswith("_BT") and getattr(self, f.name) is not None]
        return replace(self, **{name: getattr(self, name)[:, :width] for name in wide})

    def prompt_groups(self) -> Sequence[int] | None:
        """The prompt group of each item, [B]: items of the same record share a prompt. None if records are unknown."""
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
    """Token rows with a mask of the supervised positions: the input of models/scoring.py.

    They stay on the CPU, where they are sorted, packed and counted; scoring moves the tokens to the model's device.
    """

    ids: tuple[Tensor, ...]
    """Token ids of each row, prompt and completion together; int64 [L]."""
    supervised: tuple[Tensor, ...]
    """True where the token is trained on or scored, given all tokens before it; bool [L]; False at position 0."""
    row_ids: tuple[int, ...]
    """The index of each row's record in its source, for error messages and samples."""

    def __add__(self, other: Rows) -> Rows:
        """Concatenates two sets of rows."""
        return Rows(self.ids + other.ids, self.supervised + other.supervised, self.row_ids + other.row_ids)

    def to(self, device: torch.device | str) -> Self:
        return self

    def cost(self) -> list[int]:
        return [len(ids) for ids in self.ids]


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters."""

    max_new_tokens: Count
    temperature: NonNegative = 1.0
    """0 is greedy."""
    top_k: CountOrZero = 0
    """0 is off."""
    top_p: Annotated[float, Interval(gt=0, le=1)] = 1.0
    min_p: Fraction = 0.0
    """Tokens with less than this fraction of the most likely token's probability are not sampled; 0 is off."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion, besides the template's end tokens; the completion includes them."""

    def __post_init__(self) -> None:
        if "" in self.stop:
            raise ConfigError("rollout.stop: expected non-empty texts; [] disables stop texts")


@dataclass(frozen=True)
class Stop:
    """End tokens and stop texts; the completion includes them."""

    ids: tuple[int, ...]
    """End tokens."""
    texts: tuple[str, ...] = ()
    """Texts that end a completion."""
    decode: Callable[[Sequence[int]], str] | None = None
    """Decodes token ids, including special tokens; required for `texts`."""
    limits: tuple[int, ...] | None = None
    """Token limit of each row, if lower than max_new_tokens because earlier turns used some; None for no limit."""


@dataclass(frozen=True)
class Completion:
    """One sampled continuation of a prompt."""

    ids: Tensor
    """Token ids, including the end-of-sequence token if it was sampled; int64 [T]."""
    logps: Tensor
    """Log-probability of each token under the distribution it was sampled from, float32 [T]."""
    finished: bool
    """True if it ended with an end token or stop text, False if it was truncated at max_new_tokens."""


@dataclass(frozen=True)
class Step:
    """The result of an environment step after a turn of the policy."""

    observation: str
    """Text appended after the turn; the policy conditions on it, and it is masked in the loss."""
    state: Any
    """The environment's state, passed to its next step."""
    reward: float | None = None
    """The reward of this turn; None if it has no reward."""
    done: bool = False
    """True when the episode is over."""
    error: bool = False
    """True if the turn was an invalid action."""


@dataclass(frozen=True)
class RewardBatch:
    """Rewards of a batch of completions."""

    total_B: Tensor
    """The total reward, float32 [B]; NaN if no component could score the completion."""
    parts: Mapping[str, tuple[float | None, ...]]
    """Each reward component before weighting, [B]; None if it could not score the completion."""


PerRow = tuple[Tensor, Tensor]
"""Total and count of each row, [B] each."""


@dataclass
class Mean:
    """A mean as total and count, which are summed over micro-batches, mini-batches and ranks.

    Not torchmetrics' MeanMetric, whose update takes 160 µs instead of 3, whose sums are float32, and which needs one
    collective per metric; here one collective reduces all metrics of an update.
    """

    total: Tensor | float
    count: Tensor | float
    rows: PerRow | None = None
    """The same for each row, where a metric has them; sums have none."""

    @classmethod
    def of_rows(cls, total_B: Tensor, count_B: Tensor | None = None) -> Mean:
        """The mean over rows, or over what `count_B` counts in each row."""
        total_B = total_B.detach()
        count = len(total_B) if count_B is None else count_B.sum()
        return cls(total_B.sum(), count, (total_B, torch.ones_like(total_B) if count_B is None else count_B))

    @classmethod
    def of_known(cls, values: Sequence[float | None]) -> Mean:
        """The mean over the rows whose value is known."""
        known = [value for value in values if value is not None]
        total_B = torch.tensor([value or 0.0 for value in values])
        return cls(sum(known), len(known), (total_B, torch.tensor([float(value is not None) for value in values])))

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)

    def value(self) -> float:
        """The mean; 0 for a count of 0."""
        return float(self.total) / float(self.count) if self.is_known() else 0.0

    def is_known(self) -> bool:
        """Whether it has an observation."""
        return bool(self.count)


@dataclass
class Max:
    """A maximum, combined like a Mean. NaN propagates; torchmetrics' MaxMetric ignores it."""

    peak: Tensor | float

    def __add__(self, other: Max) -> Max:
        peaks = float(self.peak), float(other.peak)
        return Max(math.nan if any(map(math.isnan, peaks)) else max(peaks))

    def value(self) -> float:
        """The maximum."""
        return float(self.peak)

    def is_known(self) -> bool:
        """Whether it has an observation, as every maximum has."""
        return True


@dataclass(frozen=True)
class LossSum:
    """A loss summed (not averaged) over a micro-batch; the training loop divides by the global count of the step."""

    total: Tensor
    """Scalar, differentiable."""
    metrics: Mapping[str, Mean | Max]
    """Metrics to log, each with its own count."""
    rows: PerRow | None = None
    """The loss of each row and what it is a mean over, for the intervals of held-out losses."""

    @classmethod
    def of_rows(cls, loss_B: Tensor, metrics: Mapping[str, Mean | Max]) -> LossSum:
        """The loss of each row, each of which counts once."""
        return cls(loss_B.sum(), metrics, (loss_B.detach(), torch.ones_like(loss_B)))
