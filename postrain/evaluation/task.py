"""What an evaluation is made of: a measure looks at a model and says what it found, each number with its interval.

The same measures run during training (training/evaluation.py) and by command (python -m postrain.evaluate). A measure
is a frozen dataclass of its settings with `__call__(eval_model)`. Leaves out what the measures are: those stand beside
this file.

A measure's settings are written once, in conf/evaluation/task/NAME.yaml (`_target_` and keys, no package line). An
option of the group takes one or several of them by its defaults list:

    # What evaluation=NAME does, in a line
    defaults:
      - default
      - measure/NAME@measures.NAME

so that `evaluation.tasks.NAME.KEY=...` changes it from the command line, and `evaluation=all`, which lists several,
repeats no setting. A further one joins any option with `+evaluation/task@evaluation.tasks.NAME=NAME`.

Records: one mapping an item. `row` names the item, equal for equal items of two models; a field called like a metric is
that item's share of it, a number or true/false, weighted by the field `weight` where there is one. Where the weighted
mean of a field, or its plain one, is the metric's value, models that are compared get its paired difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import nn

from postrain.data.chat import Template
from postrain.data.module import DataModule
from postrain.evaluation.estimate import Estimate
from postrain.models.reference import Reference
from postrain.rewards.base import Reward
from postrain.rollout.collect import Rollouts
from postrain.rollout.engine import Engine
from postrain.rollout.turns import Environment
from postrain.types import Sampling


@dataclass(frozen=True, kw_only=True)
class ScalingPoint:
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
class EvalResult:
    """What a measure found."""

    metrics: Mapping[str, Estimate]
    example: str = ""
    """The exact text of item 0 that the model was given, chat template and all."""
    records: tuple[Mapping[str, Any], ...] = ()
    """One plain mapping an item, kept in <measure>.jsonl."""
    curves: Mapping[str, tuple[ScalingPoint, ...]] = field(default_factory=dict)
    """For test-time scaling: by the way's name, its points in order of cost."""
    notes: tuple[str, ...] = ()
    """What a reader must know to read the numbers right, or why there are none."""


@dataclass(frozen=True, kw_only=True)
class EvalModel:
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
    data_as: Callable[[str], DataModule]
    """The `data` of the run, prepared as records of a kind ("Prompt", "Demonstration", "Preference", "Text"); its
    `eval` and `eval_prompts(count)` are the held-out part. Raises ConfigError where the data cannot be seen so."""
    rollout_cache: dict[tuple[int, float], Rollouts] = field(default_factory=dict)
    """Completions that some measure has already asked for, so that the next one need not; see completions.py."""


class EvalTask(Protocol):
    """One look at a model."""

    def __call__(self, eval_model: EvalModel) -> EvalResult:
        """Changes nothing in the model; equal for equal weights and seed. Where the data does not suit it, an
        EvalResult without metrics whose note says what is needed."""
        ...


@runtime_checkable
class PreflightCheck(Protocol):
    """A measure that knows before any weights are loaded when it would fail."""

    def check(self, sampling: Sampling) -> None:
        """Raises ConfigError for a user's mistake; `sampling` is how completions will be drawn."""
        ...
