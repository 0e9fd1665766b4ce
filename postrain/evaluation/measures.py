"""What an evaluation is made of: a measure looks at a model and says what it found, each number with its interval.

The same measures run during training (training/evaluation.py) and by command (python -m postrain.evaluate). A measure
is a frozen dataclass of its settings with `__call__(subject)`. Leaves out what the measures are: each has a file of its
own beside this one.

A measure's settings are written once, in conf/evaluation/measure/NAME.yaml (`_target_` and keys, no package line). An
option of the group takes one or several of them by its defaults list:

    # What evaluation=NAME does, in a line
    defaults:
      - default
      - measure/NAME@measures.NAME

so that `evaluation.measures.NAME.KEY=...` changes it from the command line, and `evaluation=all`, which lists several,
repeats no setting. A further one joins any option with `+evaluation/measure@evaluation.measures.NAME=NAME`.

Records: one mapping an item. `row` names the item, equal for equal items of two models; a field called like a metric is
that item's share of it, a number or true/false, weighted by the field `weight` where there is one. Where the weighted
mean of a field, or its plain one, is the metric's value, models that are compared get its paired difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, Protocol, runtime_checkable

from torch import nn

from postrain.data.chat import Template
from postrain.data.module import DataModule
from postrain.evaluation.intervals import (
    Interval,
    enclosed,
    jackknife_interval,
    mean_interval,
    paired_shares,
    wilson,
)
from postrain.models.reference import Reference
from postrain.rewards.base import Reward
from postrain.rollout.collect import Rollouts
from postrain.rollout.engine import Engine
from postrain.rollout.turns import Environment
from postrain.types import Sampling


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number, its 95 % interval, and how many observations it rests on."""

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def share(cls, hits: Sequence[bool | float]) -> Estimate:
        """The share of hits, with Wilson's interval; half a hit counts half.

        Fractions, such as the share of a query's wordings, vary less than hits: they have the interval of their mean.
        Equal ones say nothing of how they vary, and have Wilson's.
        """
        if set(hits) <= {0, 0.5, 1} or len(set(hits)) == 1:
            return cls._of(wilson(float(sum(hits)), len(hits)), len(hits))
        return cls.mean(hits, 0, 1)

    @classmethod
    def mean(cls, values: Sequence[float], low: float = -inf, high: float = inf) -> Estimate:
        """The mean of at least one value between `low` and `high`, with Student's interval; of one it is infinite."""
        return cls._of(mean_interval(values, low, high), len(values))

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """The mean of at least one value of a kind that is not known.

        Where all are 1 or 0 it is a share; where all lie between, such as gold scores, the interval stays there too.
        """
        return cls.share(values) if set(values) <= {0, 1} else cls.mean(values, *_around(values, 0, 1))

    @classmethod
    def paired(cls, mine: Sequence[float], theirs: Sequence[float]) -> Estimate:
        """The mean difference of two measurements of the same items, at least one."""
        gaps = [one - other for one, other in zip(mine, theirs, strict=True)]
        whole = {*mine, *theirs} <= {0, 0.5, 1}
        bounds = (-1.0, 1.0) if _around([*mine, *theirs], 0, 1) == (0, 1) else (-inf, inf)
        return cls.gain(gaps) if whole else cls.mean(gaps, *bounds)

    @classmethod
    def gain(cls, gaps: Sequence[float]) -> Estimate:
        """The mean of at least one item's gain in what it is worth, which mostly is 1 or 0."""
        shares = set(gaps) <= {-1, -0.5, 0, 0.5, 1}
        if shares:
            return cls._of(paired_shares(gaps), len(gaps))
        return cls.mean(gaps, *_around(gaps, -1, 1))

    @classmethod
    def jackknife(cls, value: float, without: Sequence[float], low: float = -inf, high: float = inf) -> Estimate:
        """Any statistic of items, between `low` and `high`, from its values with each of them left out."""
        return cls._of(jackknife_interval(value, without, low, high), len(without))

    @classmethod
    def ratio(cls, totals: Sequence[float], counts: Sequence[float]) -> Estimate:
        """Total over count of all items, such as nats per token over rows: not the mean of the items' own ratios.

        Where no total is below 0 (a loss, a KL) or none is above (a log-probability), the interval stays there too.
        Items that count nothing are left out; where none is left the value is nan.
        """
        items = [(total, count) for total, count in zip(totals, counts, strict=True) if count > 0]
        total, count = sum(total for total, _ in items), sum(count for _, count in items)
        without = [(total - t) / (count - c) for t, c in items] if len(items) > 1 else []
        low, _ = _around([t for t, _ in items], 0, inf)
        _, high = _around([t for t, _ in items], -inf, 0)
        value = total / count if items else float("nan")
        return cls._of(jackknife_interval(value, without, low, high), len(items))

    @classmethod
    def _of(cls, found: Interval, n: int) -> Estimate:
        return cls(value=found.value, low=found.low, high=found.high, n=n)


def _around(values: Sequence[float], low: float, high: float) -> tuple[float, float]:
    """`low` and `high` where they enclose all values, else no bounds."""
    return (low, high) if enclosed(values, low, high) else (-inf, inf)


@dataclass(frozen=True, kw_only=True)
class Point:
    """A way to use a model at test time, with what it costs and what it gives."""

    label: str
    """Such as "best of 8"."""
    tokens: float
    """Tokens sampled for a prompt, mean."""
    seconds: float
    """For a prompt, mean."""
    score: Estimate
    """The share of right answers, or the mean score where there is no right and wrong."""
    kl: float | None = None
    """Nats from the sampler, of a whole completion, where a formula is known."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a measure found."""

    metrics: Mapping[str, Estimate]
    example: str = ""
    """The exact text of item 0 that the model was given, chat template and all."""
    records: tuple[Mapping[str, Any], ...] = ()
    """One plain mapping an item, kept in <measure>.jsonl."""
    curves: Mapping[str, tuple[Point, ...]] = field(default_factory=dict)
    """For test-time scaling: by the way's name, its points in order of cost."""
    notes: tuple[str, ...] = ()
    """What a reader must know to read the numbers right, or why there are none."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model under evaluation, with everything it takes to ask it."""

    name: str
    model: nn.Module
    """A causal LM in eval mode on its device, adapter included."""
    tokenizer: Any
    template: Template
    engine: Engine
    environment: Environment
    reward: Reward | None
    """What scores completions; None where nothing was asked for."""
    reference: Reference | None
    """What KL is measured against; None where nobody compares."""
    seed: int
    context: int
    """Tokens the model can read."""
    micro_batch_tokens: int
    """Tokens scored at once."""
    view: Callable[[str], DataModule]
    """The `data` of the run, prepared as records of a kind ("Prompt", "Demonstration", "Preference", "Text"); its
    `eval` and `eval_prompts(count)` are the held-out part. Raises ConfigError where the data cannot be seen so."""
    drawn: dict[tuple[int, float], Rollouts] = field(default_factory=dict)
    """Completions that some measure has already asked for, so that the next one need not; see completions.py."""


class Measure(Protocol):
    """One look at a model."""

    def __call__(self, subject: Subject) -> Finding:
        """Changes nothing in the model; equal for equal weights and seed. Where the data does not suit it, a Finding
        without metrics whose note says what is needed."""
        ...


@runtime_checkable
class Foresighted(Protocol):
    """A measure that knows before any weights are loaded when it would fail."""

    def check(self, sampling: Sampling) -> None:
        """Raises ConfigError for a user's mistake; `sampling` is how completions will be drawn."""
        ...
