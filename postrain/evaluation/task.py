"""Interfaces of evaluation: an EvalTask evaluates an EvalModel and returns an EvalResult.

The same tasks run during training (training/evaluation.py) and by command (python -m postrain.evaluate). A task is a
frozen dataclass of its settings with `__call__(eval_model)`. The tasks themselves are in the other modules of this
package.

A task's settings are in conf/evaluation/task/NAME.yaml (`_target_` and keys, no package line). An option of the group
includes one or more tasks in its defaults list:

    # One line that describes evaluation=NAME
    defaults:
      - default
      - task/NAME@tasks.NAME

`evaluation.tasks.NAME.KEY=...` overrides a setting. `+evaluation/task@evaluation.tasks.NAME=NAME` adds a task to any
option.

Records: one mapping per item. `row` identifies the item, equal for equal items of two models. A field named like a
metric holds the item's value of it (number or bool), weighted by the optional field `weight`. If the weighted or the
plain mean of a field equals the metric's value, compared models get the paired difference of that metric. If several
items come from one held-out row, `held_out_row` is its number; it is `row` otherwise.
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
from postrain.rollout.environment import Environment
from postrain.types import Sampling


@dataclass(frozen=True, kw_only=True)
class ScalingPoint:
    """One point of a test-time scaling curve: a method and compute budget with its cost and score."""

    label: str
    """Such as "best of 8"."""
    tokens: float
    """Mean number of sampled tokens per prompt."""
    seconds: float
    """Mean wall time per prompt."""
    score: Estimate
    """Accuracy, or the mean score if answers have no correct/wrong grade."""
    kl: float | None = None
    """KL to the sampler in nats per completion, if there is a closed form."""


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """The result of an evaluation task."""

    metrics: Mapping[str, Estimate]
    example: str = ""
    """The exact model input of item 0, including the chat template."""
    records: tuple[Mapping[str, Any], ...] = ()
    """One plain mapping per item, written to <task>.jsonl."""
    curves: Mapping[str, tuple[ScalingPoint, ...]] = field(default_factory=dict)
    """For test-time scaling: the points of each method, in order of cost."""
    notes: tuple[str, ...] = ()
    """Caveats about the metrics, or why there are none."""


@dataclass(frozen=True, kw_only=True)
class EvalModel:
    """A model under evaluation, with what is needed to sample and score."""

    name: str
    model: nn.Module
    """A causal LM in eval mode on its device, adapter included."""
    tokenizer: Any
    template: Template
    engine: Engine
    environment: Environment
    reward: Reward | None
    """Scores completions; None if no reward is configured."""
    reference: Reference | None
    """The reference model for KL; None if there is none."""
    seed: int
    context: int
    """The model's context length in tokens."""
    micro_batch_tokens: int
    """Tokens per forward pass when scoring."""
    data_as: Callable[[str], DataModule]
    """The `data` of the run, prepared as records of a kind ("Prompt", "Demonstration", "Preference", "Text"); its
    `eval` and `eval_prompts(count)` are the held-out part. Raises ConfigError if the data cannot be converted."""
    rollout_cache: dict[tuple[int, float], Rollouts] = field(default_factory=dict)
    """Completions by (number of prompts, temperature), shared between tasks; see completions.py."""


class EvalTask(Protocol):
    """An evaluation task."""

    def __call__(self, eval_model: EvalModel) -> EvalResult:
        """Does not change the model; deterministic for equal weights and seed. If the data does not suit the task,
        returns an EvalResult without metrics, with a note that names what is needed."""
        ...


@runtime_checkable
class PreflightCheck(Protocol):
    """A task that can check its settings before weights are loaded."""

    def check(self, sampling: Sampling) -> None:
        """Raises ConfigError for a user's mistake; `sampling` holds the sampling settings."""
        ...
