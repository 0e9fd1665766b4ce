"""Tree of thoughts, breadth first (Yao et al. 2023, algorithm 1): propose several next steps for each state, value the
states they lead to, keep the best `breadth` of them.

States are valued by the model itself, asked in words whether the steps are right; by a process reward model; or, on the
world's sums, by the exact checker of partial sums: what the search would reach if its judge made no mistakes. Thoughts
are sampled one by one, the paper's first way to propose them; its votes among states and its depth-first search are
left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from postrain.data.conversation import user
from postrain.data.kinds.prompt import Prompts
from postrain.evaluation.scaling.beam import Aggregate, StepScorer, step_scorer, step_value
from postrain.evaluation.scaling.grader import Grader, NotApplicable, PromptTask
from postrain.evaluation.scaling.search import Plan, Value, compare_with_best_of_n
from postrain.evaluation.task import EvalModel, EvalResult
from postrain.models.scoring import in_micro_batches, score
from postrain.types import Count, Rows
from postrain.world import sums

STEP = re.compile(r"(?<=[.!?])\s+|\n+")
"""Where a chain of the world is cut into steps."""
WORDS = ("yes", "no")
TOLD = "value=gold: the exact checker guides the search and its best-of-n, which no model can do; a bound, no method"
ASKED = "value=model: P(yes) against P(no) to the question, which a base model may never have learned to answer"


@dataclass(frozen=True, kw_only=True)
class TreeOfThoughts(PromptTask):
    """Accuracy of breadth-first search over thoughts, for several breadths."""

    breadths: tuple[Count, ...] = (1, 2, 5)
    """States that are kept at each level; a point of the curve for each number."""
    proposals: Count = 4
    """Next thoughts that are proposed for each state."""
    depth: Count = 12
    """Thoughts at most."""
    ends: tuple[str, ...] = (".", "!", "?", "\n")
    """Texts that end a thought."""
    value: Literal["model", "process", "gold"] = "model"
    """Who says how promising a state is: model (asked `question`), process (a reward model) or gold (the world's
    sums)."""
    question: str = "{prompt}{steps}\nIs every step so far right? Answer yes or no:"
    """What the model is asked of a state, with {prompt} and {steps} in it; the answer is yes or no."""
    aggregate: Aggregate = "min"
    """For value=process: one number of the probabilities of the steps."""
    scorer: StepScorer | None = None
    """For value=process: the process reward model; null is the evaluation's own reward."""

    def run(self, eval_model: EvalModel, grader: Grader) -> EvalResult:
        plans = {
            f"breadth {breadth}": Plan(breadth, self.proposals, self.depth, self.ends)
            for breadth in sorted(self.breadths)
        }
        notes = {"gold": (TOLD,), "model": (ASKED,)}.get(self.value, ())
        return compare_with_best_of_n(
            eval_model, grader, self._value(eval_model, grader.prompts), plans, "tree of thoughts", notes
        )

    def _value(self, eval_model: EvalModel, prompts: Prompts) -> Value:
        if self.value == "model":
            return model_value(eval_model, prompts, self.question)
        if self.value == "process":
            return step_value(step_scorer(self.scorer, eval_model), prompts, self.aggregate)
        if any(columns.get("category") != "sums" for columns in prompts.columns):
            raise NotApplicable("value=gold checks the world's sums; use data=world_sums, or value=model or process")
        return gold_value(prompts)


def gold_value(prompts: Prompts) -> Value:
    """1 while every step of a sum is the next right one, else 0."""
    right = [sums.chain(sums.terms_of(prompt)) for prompt in prompts.texts]

    def value(places: Sequence[int], texts: Sequence[str]) -> list[float | None]:
        return [partial_sum(right[place], text) for place, text in zip(places, texts, strict=True)]

    return value


def partial_sum(right: tuple[str, ...], text: str) -> float | None:
    """Whether the steps so far are right; None where there are none."""
    shown = tuple(step for piece in STEP.split(text) if (step := piece.strip()))
    return float(all(sums.labels(right, shown))) if shown else None


def model_value(eval_model: EvalModel, prompts: Prompts, question: str) -> Value:
    """The model's own P(yes) / (P(yes) + P(no)) to the question about each state."""

    def value(places: Sequence[int], texts: Sequence[str]) -> list[float | None]:
        asked = [
            question.replace("{prompt}", prompts.texts[place]).replace("{steps}", text)
            for place, text in zip(places, texts, strict=True)
        ]
        return yes_probabilities(eval_model, asked)

    return value


def yes_probabilities(eval_model: EvalModel, asked: Sequence[str]) -> list[float | None]:
    """How much the model says yes rather than no to each question; None where one does not fit its context."""
    rows = [_answered(eval_model, question, word) for question in asked for word in WORDS]
    fitting = [place for place, (ids, _) in enumerate(rows) if len(ids) <= eval_model.context]
    logps_Q2 = torch.full((len(rows),), torch.nan)
    if fitting:
        # Both answers go through the model behind one copy of their question.
        families = tuple(place // len(WORDS) for place in fitting)
        ids, marks = zip(*(rows[place] for place in fitting), strict=True)
        found = in_micro_batches(
            lambda part: score(eval_model.model, part), Rows(ids, marks, families), eval_model.micro_batch_tokens
        )
        logps_Q2[fitting] = found.logps_BT.sum(1).float().cpu()
    yes_Q = torch.sigmoid(logps_Q2[0::2] - logps_Q2[1::2]).tolist()
    return [None if share != share else share for share in yes_Q]


def _answered(eval_model: EvalModel, question: str, word: str) -> tuple[Tensor, Tensor]:
    """Ids of a question answered with a word, without what would end it, and where the word stands."""
    template = eval_model.template
    # Running text goes on after a space; a template sets answers off by itself.
    said = f" {word}" if template.name == "plain" else word
    prompt, answer = template.encode_completion(user(question), said)
    ends = [place for place, token in enumerate(answer.tolist()) if token in template.stop_ids]
    ids = torch.cat([prompt, answer[: ends[0]]])
    return ids, torch.arange(len(ids)) >= len(prompt)
