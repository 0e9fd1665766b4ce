"""Self-consistency (Wang et al. 2022): sample n completions and take the majority answer.

Each point is the mean over disjoint groups of n samples, since a vote has no closed form over all subsets. The share of
votes is the confidence in the answer, whose calibration error is reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from math import exp
from statistics import fmean

from postrain.evaluation.accuracy import calibration_error
from postrain.evaluation.estimate import Estimate
from postrain.evaluation.scaling.grader import GradedSamples, Grader, PromptTask, estimates, gains, greedy_point, point
from postrain.evaluation.scaling.rules import majority_vote, powers_of_two
from postrain.evaluation.scaling.samples import Sample, draw
from postrain.evaluation.task import EvalModel, EvalResult, ScalingPoint
from postrain.types import Size


@dataclass(frozen=True)
class MajorityAnswer:
    """The majority answer of a group of samples."""

    grade: float
    share: float
    """Share of the votes."""
    answer: str | None


@dataclass(frozen=True, kw_only=True)
class SelfConsistency(PromptTask):
    """Accuracy of majority voting over 1, 2, 4, ... samples."""

    samples: Size = 16
    """Completions per prompt."""

    def run(self, eval_model: EvalModel, grader: Grader) -> EvalResult:
        graded = grader.grade(draw(eval_model, grader.prompts, self.samples, "self-consistency"))
        greedy = grader.greedy(eval_model, "self-consistency")
        elected = {n: self._elected(graded, n) for n in powers_of_two(self.samples)}
        grades = {n: [fmean(one.grade for one in groups) for groups in found] for n, found in elected.items()}
        most = powers_of_two(self.samples)[-1]
        columns = {
            "accuracy": grades[most],
            "one_sample": grades[1],
            "gain": gains(grades[most], grades[1]),
            "greedy": greedy.firsts(),
            "confidence": [fmean(one.share for one in groups) for groups in elected[most]],
            "answered": [float(groups[0].answer is not None) for groups in elected[most]],
        }
        known = [(groups[0].share, groups[0].grade) for groups in elected[most] if groups[0].answer is not None]
        return EvalResult(
            metrics=estimates(columns)
            | ({"calibration_error": calibration_error(*zip(*known, strict=True))} if known else {})
            | {"tokens": Estimate.mean([most * each for each in graded.samples.tokens()], 0)},
            example=grader.example(eval_model),
            records=grader.records(
                {
                    **columns,
                    "right": [{str(n): grades[n][index] for n in grades} for index in range(len(graded.grades))],
                    "answer": [groups[0].answer for groups in elected[most]],
                    "answers": self.answers_of(graded.samples),
                }
            ),
            curves={"self-consistency": self._curve(graded, grades), "greedy": (greedy_point(greedy),)},
            notes=(*grader.notes(graded, greedy), *self._unread(graded)),
        )

    def _elected(self, graded: GradedSamples, n: int) -> list[list[MajorityAnswer]]:
        """The majority answer of each group of n samples, per prompt."""
        starts = range(0, self.samples - n + 1, n)
        rows = zip(graded.samples.by_prompt, graded.grades, self.answers_of(graded.samples), strict=True)
        return [
            [vote_of(samples[at : at + n], grades[at : at + n], answers[at : at + n]) for at in starts]
            for samples, grades, answers in rows
        ]

    def _curve(self, graded: GradedSamples, grades: dict[int, list[float]]) -> tuple[ScalingPoint, ...]:
        each = fmean(graded.samples.tokens())
        return tuple(
            point(f"majority of {n}", values, tokens=n * each, seconds=graded.samples.seconds_for(n))
            for n, values in grades.items()
        )

    def _unread(self, graded: GradedSamples) -> list[str]:
        answers = list(chain.from_iterable(self.answers_of(graded.samples)))
        without = sum(answer is None for answer in answers)
        return (
            [f"{without} of {len(answers)} completions give no {self.answer_type} and have no vote"] if without else []
        )


def vote_of(samples: tuple[Sample, ...], grades: tuple[float, ...], answers: list[str | None]) -> MajorityAnswer:
    """The majority answer of a group; ties are broken by the geometric mean of the token probabilities."""
    won = majority_vote(answers, [exp(one.logprob) for one in samples])
    return MajorityAnswer(grades[won.index] if won.share else 0.0, won.share, answers[won.index])
