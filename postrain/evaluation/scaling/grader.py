"""Base of test-time scaling tasks: held-out prompts and a grader of their completions.

Prompts are the unit of every interval, since completions of a prompt are not independent. Sampling and selection are in
the modules of the methods.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, ClassVar, Literal

import torch

from postrain.data.kinds.prompt import Prompts
from postrain.data.module import DataModule
from postrain.errors import ConfigError
from postrain.evaluation.accuracy import reaches
from postrain.evaluation.estimate import Estimate
from postrain.evaluation.scaling.answers import Kind, extract_answer
from postrain.evaluation.scaling.samples import Samples, check_temperature, draw
from postrain.evaluation.task import EvalModel, EvalResult, ScalingPoint
from postrain.hardware.shares import map_items
from postrain.rewards.base import Reward, is_verifiable, nan_to_none
from postrain.rewards.text import exact, last_number, numeric
from postrain.types import Count, Sampling

GradeFunction = Callable[[Prompts, Sequence[str]], Sequence[float | None]]
"""The correctness of each completion, usually 1 or 0; None if it cannot be graded."""
Source = Literal["reward", "answer", "gold"]


class NotApplicable(Exception):
    """The data or the model lacks what a task needs; the message names it."""


@dataclass(frozen=True)
class GradedSamples:
    """Completions with their correctness, per prompt."""

    samples: Samples
    grades: tuple[tuple[float, ...], ...]
    ungraded: int
    """Number of completions that could not be graded; they count as wrong."""

    def firsts(self) -> list[float]:
        """The correctness of each prompt's first completion."""
        return [mine[0] for mine in self.grades]


@dataclass(frozen=True)
class Grader:
    """Prompts with the function that grades their completions."""

    data: DataModule
    prompts: Prompts
    grade_function: GradeFunction
    by: Source
    """The source of correctness."""
    description: str
    """Description of the grading, for the notes."""

    def grade(self, samples: Samples) -> GradedSamples:
        """Grades completions of the prompts in one batch."""
        indices, texts = samples.flat()

        def graded_items(items: range) -> Sequence[float | None]:
            prompts = self.prompts.select([indices[item] for item in items])
            return self.grade_function(prompts, [texts[item] for item in items])

        found = map_items(len(texts), graded_items, together=False)
        graded = samples.grouped(0.0 if grade is None else float(grade) for grade in found)
        return GradedSamples(samples, graded, sum(grade is None for grade in found))

    def greedy(self, eval_model: EvalModel, purpose: str) -> GradedSamples:
        """The graded greedy completion of each prompt."""
        return self.grade(draw(eval_model, self.prompts, 1, purpose, greedy=True))

    def example(self, eval_model: EvalModel) -> str:
        """The exact model input of the first prompt."""
        return eval_model.template.decode_all(self.prompts.ids[0].tolist())

    def records(self, columns: Mapping[str, Sequence[Any]]) -> tuple[Mapping[str, Any], ...]:
        """One record per prompt, with its row, text and value of each column."""
        rows = zip(self.prompts.row_ids, self.prompts.texts, *columns.values(), strict=True)
        return tuple(dict(zip(("row", "prompt", *columns), row, strict=True)) for row in rows)

    def notes(self, *graded: GradedSamples) -> tuple[str, ...]:
        """Notes on the grading of these completions."""
        ungraded, total = sum(one.ungraded for one in graded), sum(len(mine) for one in graded for mine in one.grades)
        left_out = f"{ungraded} of {total} completions could not be graded and count as wrong"
        return (self.description, left_out) if ungraded else (self.description,)


@dataclass(frozen=True, kw_only=True)
class PromptTask(ABC):
    """A task on graded completions of held-out prompts."""

    random: ClassVar[bool] = True
    """Whether the task needs random samples."""

    prompts: Count = 128
    """Maximum number of held-out prompts; data.eval_rows sets how many there are."""
    answer_type: Kind = "number"
    """Type of answer: number (the last one in the marked answer, else in the completion) or text."""
    grader: Literal["auto", "reward", "answer", "gold"] = "auto"
    """What grades completions: reward, answer (the data's answer column), gold (the gold score), or auto, the first
    available one.
    auto skips learned rewards (learned, process, judge, or a sum with one of them)."""
    threshold: float | None = None
    """A completion is correct if its reward or gold score is at least this; null uses the score itself."""

    @torch.no_grad()
    def __call__(self, eval_model: EvalModel) -> EvalResult:
        """See `EvalTask`."""
        self.check(eval_model.engine.sampling)
        try:
            return self.run(eval_model, self._grader(eval_model))
        except NotApplicable as reason:
            return EvalResult(metrics={}, notes=(str(reason),))

    def check(self, sampling: Sampling) -> None:
        """See `PreflightCheck`."""
        if self.random:
            check_temperature(sampling)

    @abstractmethod
    def run(self, eval_model: EvalModel, grader: Grader) -> EvalResult:
        """Runs the task; raises NotApplicable if the data or model lacks something."""

    def answers_of(self, samples: Samples) -> list[list[str | None]]:
        """The answer of each completion, per prompt."""
        found = [[extract_answer(one.text, self.answer_type) for one in mine] for mine in samples.by_prompt]
        return [[None if answer is None else answer.value for answer in mine] for mine in found]

    def _grader(self, eval_model: EvalModel) -> Grader:
        try:
            data = eval_model.data_as("Prompt")
        except ConfigError as error:
            raise NotApplicable(f"needs data that can be converted to prompts ({error})") from None
        prompts = data.eval_prompts(self.prompts)
        known: dict[Source, bool] = {
            "reward": eval_model.reward is not None,
            "answer": all(self._has_answer(columns) for columns in prompts.columns),
            "gold": data.gold_score is not None and all("gold" in columns for columns in prompts.columns),
        }
        order: tuple[Source, ...] = ("reward", "answer", "gold")
        trusted: list[Source] = [
            source for source in order if known[source] and (source != "reward" or is_verifiable(eval_model.reward))
        ]
        chosen: Source | None = next(iter(trusted), None) if self.grader == "auto" else self.grader
        if chosen is None or not known[chosen]:
            raise NotApplicable(
                f"grader={self.grader}: there is no grader; choose a verifiable reward "
                "(reward=answer), or data with a column answer or gold scores"
            )
        return Grader(
            data, prompts, self._grade_function(chosen, eval_model.reward, data), chosen, self._description(chosen)
        )

    def _has_answer(self, columns: Mapping[str, Any]) -> bool:
        answer = columns.get("answer")
        return answer is not None and (self.answer_type == "text" or last_number(str(answer)) is not None)

    def _grade_function(self, source: Source, reward: Reward | None, data: DataModule) -> GradeFunction:
        if source == "answer":
            compare = numeric if self.answer_type == "number" else exact
            return lambda prompts, completions: compare(completions, [columns["answer"] for columns in prompts.columns])
        if source == "gold":
            return lambda prompts, completions: self._reached(gold_correctness(data, prompts, completions))
        assert reward is not None
        return lambda prompts, completions: self._reached(
            nan_to_none(reward(prompts.texts, completions, prompts.columns).total_B)
        )

    def _reached(self, grades: Sequence[float | None]) -> Sequence[float | None]:
        if self.threshold is None:
            return grades
        return [None if grade is None else float(reaches(grade, self.threshold)) for grade in grades]

    def _description(self, source: Source) -> str:
        if source == "answer":
            return f"accuracy: the extracted {self.answer_type} equals the column answer"
        what = "reward" if source == "reward" else "gold score (its part correct, where it has one)"
        return f"accuracy: mean {what}" if self.threshold is None else f"accuracy: {what} of {self.threshold:g} or more"


def gold_correctness(data: DataModule, prompts: Prompts, completions: Sequence[str]) -> list[float]:
    """The part `correct` of each gold score if there is one, else its total."""
    assert data.gold_score is not None
    rows = zip(prompts.texts, completions, prompts.columns, strict=True)
    scores = [data.gold_score(prompt, completion, columns["gold"]) for prompt, completion, columns in rows]
    return [parts.get("correct", parts["total"]) for parts in scores]


def estimates(columns: Mapping[str, Sequence[float]]) -> dict[str, Estimate]:
    """The mean of each column of per-prompt scores; a gain may be negative and is never a share."""
    return {
        name: Estimate.gain(values) if name.startswith("gain") else Estimate.of(values)
        for name, values in columns.items()
    }


def gains(values: Sequence[float], base: Sequence[float]) -> list[float]:
    """The difference to the baseline, per prompt."""
    return [value - before for value, before in zip(values, base, strict=True)]


def greedy_point(greedy: GradedSamples) -> ScalingPoint:
    """The point of greedy decoding, the baseline of all methods."""
    samples = greedy.samples
    return point("greedy", greedy.firsts(), tokens=fmean(samples.tokens()), seconds=samples.seconds_for(1))


def point(
    label: str, values: Sequence[float], *, tokens: float, seconds: float, kl: float | None = None
) -> ScalingPoint:
    """A point of a curve from per-prompt scores."""
    return ScalingPoint(label=label, tokens=tokens, seconds=seconds, score=Estimate.of(values), kl=kl)
