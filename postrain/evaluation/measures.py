"""What an evaluation is made of: a measure looks at a model and says what it found, each number with its interval.

The same measures run during training (callbacks/evaluation.py) and by command (python -m postrain.evaluate). A measure
is a frozen dataclass of its settings with `__call__(subject)`; its YAML stands in conf/evaluation. Leaves out what the
measures are: each has a file of its own beside this one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from postrain.data.chat import Template
from postrain.data.module import DataModule
from postrain.evaluation.intervals import bootstrap_interval, wilson
from postrain.models.reference import Reference
from postrain.rewards.base import Reward
from postrain.rollout.engine import Engine
from postrain.rollout.turns import Environment


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number, its 95 % interval, and how many observations it rests on."""

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def share(cls, hits: Sequence[bool | float]) -> Estimate:
        """The share of hits, with Wilson's interval; half a hit counts half."""
        found = wilson(float(sum(hits)), len(hits))
        return cls(value=found.value, low=found.low, high=found.high, n=len(hits))

    @classmethod
    def mean(cls, values: Sequence[float]) -> Estimate:
        """The mean of at least one value, with its bootstrap interval."""
        found = bootstrap_interval(values)
        return cls(value=found.value, low=found.low, high=found.high, n=len(values))


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


class Measure(Protocol):
    """One look at a model."""

    def __call__(self, subject: Subject) -> Finding:
        """Changes nothing in the model; equal for equal weights and seed. Where the data does not suit it, a Finding
        without metrics whose note says what is needed."""
        ...
