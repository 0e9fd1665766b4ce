"""Best of n: sample n completions and keep the best-scored one.

The score is a reward or the mean token log-probability. The oracle selects by correctness: pass@n, the upper bound of
any selection. Each point is the mean over all subsets of n samples (rules.expected_best_of_n), an unbiased estimate
that uses every sample.

The KL of a point is that of best-of-n sampling to the sampler, log n − (n − 1)/n (Stiennon et al. 2020).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from postrain.config.paths import command
from postrain.evaluation.completions import reward_totals
from postrain.evaluation.estimate import Estimate
from postrain.evaluation.scaling.grader import GradedSamples, Grader, PromptTask, estimates, gains, greedy_point, point
from postrain.evaluation.scaling.rules import best_of_n_kl, expected_best_of_n, powers_of_two
from postrain.evaluation.scaling.samples import Samples, draw, timed
from postrain.evaluation.task import EvalModel, EvalResult, ScalingPoint
from postrain.rewards.base import Reward
from postrain.types import Size

NO_SCORER = (
    "by=reward: there is no reward besides the grader, so completions were selected by log-probability; give a scorer, "
    f"or reward=process reward.path=RUN with a run of: {command('train')} method=prm"
)


@dataclass(frozen=True)
class Choice:
    """Selection scores of all samples."""

    scores: tuple[tuple[float | None, ...], ...]
    """Per prompt and sample."""
    seconds: float
    """Wall time of scoring all samples."""

    def expected_correctness(self, graded: GradedSamples, n: int) -> list[float]:
        """Expected correctness of the best of n, per prompt."""
        return [expected_best_of_n(*pair, n) for pair in zip(self.scores, graded.grades, strict=True)]


@dataclass(frozen=True, kw_only=True)
class BestOfN(PromptTask):
    """Accuracy of best-of-n for n = 1, 2, 4, ... samples."""

    samples: Size = 16
    """Completions per prompt."""
    by: Literal["reward", "logprob"] = "reward"
    """Selection for the metrics: reward, or logprob (mean token log-probability). The curves show all."""
    scorer: Reward | None = None
    """The reward to select by; null is the run's reward, unless that is the grader. With reward=process reward.path=RUN
    a process reward model selects, and the data's answers grade."""

    def run(self, eval_model: EvalModel, grader: Grader) -> EvalResult:
        graded = grader.grade(draw(eval_model, grader.prompts, self.samples, "best of n"))
        greedy = grader.greedy(eval_model, "best of n")
        choices = self._choices(eval_model, grader, graded)
        by = self.by if self.by in choices else "logprob"
        known = {f"best of n ({name})": self._curve(choice, graded) for name, choice in choices.items()}
        columns = self._columns(choices[by], choices["oracle"], graded, greedy)
        return EvalResult(
            metrics=estimates(columns)
            | {"tokens": Estimate.mean([powers_of_two(self.samples)[-1] * one for one in graded.samples.tokens()], 0)},
            example=grader.example(eval_model),
            records=grader.records({**columns, **self._details(choices[by], graded)}),
            curves={**known, "greedy": (greedy_point(greedy),)},
            notes=(*grader.notes(graded, greedy), *([NO_SCORER] if by != self.by else [])),
        )

    def _choices(self, eval_model: EvalModel, grader: Grader, graded: GradedSamples) -> dict[str, Choice]:
        logps = tuple(tuple(one.logprob for one in mine) for mine in graded.samples.by_prompt)
        found = {"logprob": Choice(logps, 0.0), "oracle": Choice(graded.grades, 0.0)}
        scorer = self.scorer or (None if grader.by == "reward" else eval_model.reward)
        return found if scorer is None else {"reward": scored(scorer, eval_model, grader, graded.samples), **found}

    def _curve(self, choice: Choice, graded: GradedSamples) -> tuple[ScalingPoint, ...]:
        samples, each = graded.samples, fmean(graded.samples.tokens())
        return tuple(
            point(
                f"best of {n}",
                choice.expected_correctness(graded, n),
                tokens=n * each,
                seconds=samples.seconds_for(n) + choice.seconds * n / (self.samples * len(samples.by_prompt)),
                kl=best_of_n_kl(n),
            )
            for n in powers_of_two(self.samples)
        )

    def _columns(
        self, choice: Choice, oracle: Choice, graded: GradedSamples, greedy: GradedSamples
    ) -> dict[str, list[float]]:
        """The value of each metric per prompt."""
        most = powers_of_two(self.samples)[-1]
        best, one = choice.expected_correctness(graded, most), choice.expected_correctness(graded, 1)
        return {
            "accuracy": best,
            "one_sample": one,
            "gain": gains(best, one),
            "greedy": greedy.firsts(),
            "oracle": oracle.expected_correctness(graded, most),
        }

    def _details(self, choice: Choice, graded: GradedSamples) -> Mapping[str, Sequence[object]]:
        """Further fields of each prompt's record."""
        by_size = {str(n): choice.expected_correctness(graded, n) for n in powers_of_two(self.samples)}
        return {
            "right": [{n: grades[index] for n, grades in by_size.items()} for index in range(len(graded.grades))],
            "answers": self.answers_of(graded.samples),
            "grades": graded.grades,
            "scores": choice.scores,
        }


def scored(scorer: Reward, eval_model: EvalModel, grader: Grader, samples: Samples) -> Choice:
    """Scores all samples with a reward."""
    indices, texts = samples.flat()
    prompts = grader.prompts.select(indices)
    scorer.to(next(eval_model.model.parameters()).device)
    with timed() as clock:
        totals = reward_totals(scorer, prompts, texts)
    return Choice(samples.grouped(totals), clock.seconds)
