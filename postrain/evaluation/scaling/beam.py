"""Beam search over steps, guided by a process reward model (Snell et al. 2024, section 5): each level keeps the `width`
beginnings whose steps it finds most right.

The reward model says where steps end in text (its `split`) and what a chain is worth (its steps' probabilities, by
`aggregate`); `ends` are texts at which sampling stops to ask it.
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
from postrain.rewards.reward_model import AGGREGATES
from postrain.types import Count

Aggregate = Literal["last", "min", "product", "mean"]
NO_SCORER = (
    f"needs a process reward model: {command('train')} method=prm makes one, then say reward=process reward.path=RUN"
)


@runtime_checkable
class StepScorer(Protocol):
    """Scores the steps of a completion, as `postrain.rewards.reward_model.ProcessRewardModel` does."""

    def step_scores(self, prompts: Sequence[str], completions: Sequence[str]) -> list[tuple[float, ...]]:
        """Of each step of each completion, from 0 to 1; none where there is no step."""
        ...

    def to(self, device: torch.device | str) -> Any:
        """Moves what computes, if anything does."""
        ...


@dataclass(frozen=True, kw_only=True)
class BeamSearch(PromptTask):
    """Accuracy of step search by a process reward model, for several widths."""

    widths: tuple[Count, ...] = (1, 2, 4)
    """Beginnings that are kept; a point of the curve for each number."""
    expansions: Count = 4
    """Continuations that are sampled of each beginning."""
    depth: Count = 12
    """Steps at most."""
    ends: tuple[str, ...] = (".", "!", "?", "\n")
    """Texts that end a step: sampling stops there and the reward model is asked."""
    aggregate: Aggregate = "min"
    """What a beginning is worth, of the probabilities that its steps are right."""
    scorer: StepScorer | None = None
    """The process reward model; null is the evaluation's own reward."""

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
    """The process reward model there is, on the model's device; raises NotApplicable where there is none."""
    scorer = own or eval_model.reward
    if not isinstance(scorer, StepScorer):
        raise NotApplicable(NO_SCORER)
    scorer.to(next(eval_model.model.parameters()).device)
    return scorer


def step_value(scorer: StepScorer, prompts: Prompts, aggregate: Aggregate) -> Value:
    """What the reward model makes of the steps so far."""
    combined = AGGREGATES[aggregate]

    def value(places: Sequence[int], texts: Sequence[str]) -> list[float | None]:
        scores = scorer.step_scores([prompts.texts[place] for place in places], texts)
        return [combined(steps) if steps else None for steps in scores]

    return value
