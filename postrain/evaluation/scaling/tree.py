"""Tree of thoughts, breadth first (Yao et al. 2023, algorithm 1): propose several next steps for each state, value the
states they lead to, keep the best `breadth` of them.

States are valued by prompting the model whether the steps are correct, by a process reward model, or, on the world's
sums, by an exact checker of partial sums (an upper bound). Thoughts are sampled independently, the paper's first
proposal strategy. Not implemented: voting across states, and depth-first search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from postrain.data.conversation import user
from postrain.data.kinds.prompt import Prompts
from postrain.data.sentences import sentences
from postrain.evaluation.scaling.beam import Aggregate, StepScorer, step_scorer, step_value
from postrain.evaluation.scaling.grader import Grader, NotApplicable, PromptTask
from postrain.evaluation.scaling.search import Plan, Value, compare_with_best_of_n
from postrain.evaluation.task import EvalModel, EvalResult
from postrain.models.micro_batches import in_micro_batches
from postrain.models.scoring import score
from postrain.types import Count, Rows
from postrain.world import sums

WORDS = ("yes", "no")
GOLD_NOTE = "value=gold: the exact checker guides the search and best-of-n; this is an upper bound, not a method"
MODEL_NOTE = "value=model: P(yes) against P(no) to the question, which a base model may not be able to answer"


@dataclass(frozen=True, kw_only=True)
class TreeOfThoughts(PromptTask):
    """Accuracy of tree of thoughts (breadth-first), compared with best-of-n of equal cost."""

    breadths: tuple[Count, ...] = (1, 2, 5)
    """States kept at each level; one point of the curve each."""
    proposals: Count = 4
    """Sampled next thoughts per state."""
    depth: Count = 12
    """Maximum number of thoughts."""
    ends: tuple[str, ...] = (".", "!", "?", "\n")
    """Texts that end a thought."""
    value: Literal["model", "process", "gold"] = "model"
    """The value function of states: model (prompted with `question`), process (a process reward model) or gold (exact,
    for the world's sums)."""
    question: str = "{prompt}{steps}\nIs every step so far right? Answer yes or no:"
    """The prompt that asks the model about a state, with {prompt} and {steps}; answered by yes or no."""
    aggregate: Aggregate = "min"
    """For value=process: how the step probabilities are combined."""
    scorer: StepScorer | None = None
    """For value=process: the process reward model; null is the run's reward."""

    def run(self, eval_model: EvalModel, grader: Grader) -> EvalResult:
        plans = {
            f"breadth {breadth}": Plan(breadth, self.proposals, self.depth, self.ends)
            for breadth in sorted(self.breadths)
        }
        notes = {"gold": (GOLD_NOTE,), "model": (MODEL_NOTE,)}.get(self.value, ())
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
    """1 if every step so far is correct, else 0."""
    correct_steps = [sums.chain(sums.terms_of(prompt)) for prompt in prompts.texts]

    def value(indices: Sequence[int], texts: Sequence[str]) -> list[float | None]:
        return [partial_sum(correct_steps[index], text) for index, text in zip(indices, texts, strict=True)]

    return value


def partial_sum(correct_steps: tuple[str, ...], text: str) -> float | None:
    """1 if the steps so far are correct, else 0; None without steps."""
    steps = tuple(sentences(text))
    return float(all(sums.labels(correct_steps, steps))) if steps else None


def model_value(eval_model: EvalModel, prompts: Prompts, question: str) -> Value:
    """The model's own P(yes) / (P(yes) + P(no)) to the question about each state."""

    def value(indices: Sequence[int], texts: Sequence[str]) -> list[float | None]:
        questions = [
            question.replace("{prompt}", prompts.texts[index]).replace("{steps}", text)
            for index, text in zip(indices, texts, strict=True)
        ]
        return yes_probabilities(eval_model, questions)

    return value


def yes_probabilities(eval_model: EvalModel, questions: Sequence[str]) -> list[float | None]:
    """P(yes) / (P(yes) + P(no)) for each question; None if it does not fit the context."""
    rows = [_answered(eval_model, question, word) for question in questions for word in WORDS]
    fitting = [index for index, (ids, _) in enumerate(rows) if len(ids) <= eval_model.context]
    logps_Q2 = torch.full((len(rows),), torch.nan)
    if fitting:
        # Both answers share one forward pass of their question.
        families = tuple(index // len(WORDS) for index in fitting)
        ids, marks = zip(*(rows[index] for index in fitting), strict=True)
        found = in_micro_batches(
            lambda part: score(eval_model.model, part), Rows(ids, marks, families), eval_model.micro_batch_tokens
        )
        logps_Q2[fitting] = found.logps_BT.sum(1).float().cpu()
    yes_Q = torch.sigmoid(logps_Q2[0::2] - logps_Q2[1::2]).tolist()
    return [None if share != share else share for share in yes_Q]


def _answered(eval_model: EvalModel, question: str, word: str) -> tuple[Tensor, Tensor]:
    """Ids of a question and a one-word answer without end tokens, and the mask of the answer."""
    template = eval_model.template
    # Plain text needs a space before the answer; chat templates separate it.
    text = f" {word}" if template.name == "plain" else word
    prompt, answer = template.encode_completion(user(question), text)
    ends = [index for index, token in enumerate(answer.tolist()) if token in template.stop_ids]
    ids = torch.cat([prompt, answer[: ends[0]]])
    return ids, torch.arange(len(ids)) >= len(prompt)
