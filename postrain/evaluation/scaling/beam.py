"""Beam search over steps, guided by a process reward model (Snell et al. 2024, section 5): each level keeps the
`width` best-scored partial completions.

The score is the reward model's step probabilities, combined by `aggregate`. The reward model splits text into steps
(its `step_separator`); sampling pauses at the texts in `ends` to score a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch

from postrain.config.paths import command
from postrain.data.kinds.prompt import Prompts
from postrain.evaluation.scaling.grader import Grader, NotApplicable, PromptTask
from postrain.evaluation.scaling.search import Plan, Value, compare_with_best_of_n
from postrain.evaluation.task import EvalModel, EvalResult
from postrain.rewards.base import Columns
from postrain.rewards.reward_model import AGGREGATES
from postrain.types import Count

Aggregate = Literal["last", "min", "product", "mean"]
NO_SCORER = (
    f"needs a process reward model: {command('train')} method=prm trains one, then set reward=process reward.path=RUN"
)


@runtime_checkable
class StepScorer(Protocol):
    """A process reward model, such as `postrain.rewards.reward_model.ProcessRewardModel`."""

    def step_scores(
        self, prompts: Sequence[str], completions: Sequence[str], columns: Columns
    ) -> list[tuple[float, ...]]:
        """The score in [0, 1] of each step of each completion; empty without steps."""
        ...

    def to(self, device: torch.device | str) -> Any:
        """Moves the weights, if any."""
        ...


@dataclass(frozen=True, kw_only=True)
class BeamSearch(PromptTask):
    """Accuracy of beam search over steps with a process reward model, compared with best-of-n of equal cost."""

    widths: tuple[Count, ...] = (1, 2, 4)
    """Beam widths; one point of the curve each."""
    expansions: Count = 4
    """Sampled continuations of each partial completion."""
    depth: Count = 12
    """Maximum number of steps."""
    ends: tuple[str, ...] = (".", "!", "?", "\n")
    """Texts that end a step."""
    aggregate: Aggregate = "min"
    """How the step probabilities are combined into one score."""
    scorer: StepScorer | None = None
    """The process reward model; null is the run's reward."""

    def run(self, eval_model: EvalModel, grader: Grader) -> EvalResult:
        scorer = step_scorer(self.scorer, eval_model)
        plans = {
            f"{width} × {self.expansions}": Plan(width, self.expansions, self.depth, self.ends)
            for width in sorted(self.widths)
        }
        value = step_value(scorer, grader.prompts, self.aggregate)
        return compare_with_best_of_n(
            eval_model, grader, value, plans, "beam search", ("labels: beams × continuations of each",)
        )


def step_scorer(own: StepScorer | None, eval_model: EvalModel) -> StepScorer:
    """The process reward model, moved to the model's device; raises NotApplicable if there is none."""
    scorer = own or eval_model.reward
    if not isinstance(scorer, StepScorer):
        raise NotApplicable(NO_SCORER)
    scorer.to(next(eval_model.model.parameters()).device)
    return scorer


def step_value(scorer: StepScorer, prompts: Prompts, aggregate: Aggregate) -> Value:
    """Scores partial completions by the aggregated step scores."""
    combined = AGGREGATES[aggregate]

    def value(indices: Sequence[int], texts: Sequence[str]) -> list[float | None]:
        chosen = prompts.select(indices)
        scores = scorer.step_scores(chosen.texts, texts, chosen.columns)
        return [combined(steps) if steps else None for steps in scores]

    return value
