"""Chain-of-thought prompting: accuracy of the same questions with different prompts.

Prompts: unchanged ("as it stands"); direct, with a suffix that asks for the answer only; zero-shot chain of thought
(Kojima et al. 2022); few-shot with k worked examples from the training rows (Wei et al. 2022). Examples are earlier
turns of the conversation; the plain template writes them as preceding documents. Each prompt samples its own examples,
so the interval includes that variance; k examples are the first k of a larger number.

The confidence in an answer is the probability of its tokens. The answer is extracted from the reasoning; there is no
second prompt for it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import ClassVar

from postrain.data.conversation import Message, Messages, plain_text, user
from postrain.data.kinds.demonstration import Demonstration
from postrain.data.kinds.prompt import Prompt, Prompts
from postrain.errors import ConfigError
from postrain.evaluation.accuracy import calibration_error
from postrain.evaluation.estimate import Estimate
from postrain.evaluation.scaling.answers import answer_probability, extract_answer
from postrain.evaluation.scaling.grader import GradedSamples, Grader, PromptTask, gains, point
from postrain.evaluation.scaling.samples import Sample, draw
from postrain.evaluation.task import EvalModel, EvalResult, ScalingPoint
from postrain.seeds import derive_seed
from postrain.types import Count
from postrain.world import sums

DIRECT = "direct"
NO_EXAMPLES = (
    "few-shot is left out: the training rows have no worked answers; use demonstrations, or set `worked` to the "
    "column with worked answers"
)


@dataclass(frozen=True)
class PromptVariant:
    """A prompt format: as it stands, direct, zero-shot or few-shot."""

    name: str
    """Prefix of the metrics."""
    curve: str
    label: str
    prompts: Prompts


@dataclass(frozen=True)
class VariantResult:
    """The results of a prompt variant."""

    graded: GradedSamples
    answers: list[str | None]
    confidences: list[float | None]
    """The probability of each answer; None without an answer."""

    def answered(self) -> list[bool]:
        """Whether an answer could be extracted, per prompt."""
        return [confidence is not None for confidence in self.confidences]


@dataclass(frozen=True, kw_only=True)
class ChainOfThought(PromptTask):
    """Accuracy and confidence of direct, zero-shot and few-shot chain-of-thought prompting."""

    random: ClassVar[bool] = False

    direct: str = "The answer is"
    """Suffix of the question for direct answers: the beginning of the answer, or an instruction for a chat model."""
    zero_shot: str = "Let's think step by step."
    """Suffix of the question for zero-shot chain of thought."""
    shots: tuple[Count, ...] = (1, 2, 4)
    """Numbers of few-shot examples; one point of the curve each. [] disables few-shot."""
    worked: str | None = None
    """The column of the training rows with worked answers; null uses demonstrations, or the steps of sums."""
    greedy: bool = True
    """Decode greedily; false samples one completion."""

    def run(self, eval_model: EvalModel, grader: Grader) -> EvalResult:
        variants = list(self._variants(eval_model, grader))
        fitting = [variant for variant in variants if self._fits(eval_model, variant.prompts)]
        found = {variant.name: self._found(eval_model, grader, variant) for variant in fitting}
        curves: dict[str, tuple[ScalingPoint, ...]] = {}
        for variant in fitting:
            curves[variant.curve] = (*curves.get(variant.curve, ()), self._point(variant, found[variant.name].graded))
        too_long = [variant.label for variant in variants if variant not in fitting]
        last = fitting[-1]
        return EvalResult(
            metrics={
                f"{variant.name}/{metric}": value
                for variant in fitting
                for metric, value in self._metrics(variant, found[variant.name], found.get(DIRECT)).items()
            },
            example=eval_model.template.decode_all(last.prompts.ids[0].tolist()),
            records=grader.records(self._columns(found)),
            curves=curves,
            notes=(
                *grader.notes(*(one.graded for one in found.values())),
                f"the example is of the prompt {last.label}; tokens are sampled, prompt_tokens are the prompt's",
                *([NO_EXAMPLES] if self.shots and all(variant.curve != "few-shot" for variant in variants) else []),
                *([f"left out, since longer than the model's context: {', '.join(too_long)}"] if too_long else []),
            ),
        )

    def _variants(self, eval_model: EvalModel, grader: Grader) -> Iterator[PromptVariant]:
        originals = questions(grader)
        yield PromptVariant("as_it_stands", "as it stands", "as it stands", grader.prompts)
        for name, curve, text in ((DIRECT, "direct", self.direct), ("zero_shot", "zero-shot", self.zero_shot)):
            yield PromptVariant(
                name,
                curve,
                curve,
                rephrased(eval_model, grader.prompts, [with_suffix(turns, text) for turns in originals]),
            )
        pool = worked_examples(eval_model, grader, self.worked)
        for k in self.shots if pool else ():
            label = f"few-shot, {k} example{'s' if k > 1 else ''}"
            before = [
                few_shot_turns(pool, k, derive_seed(eval_model.seed, "shots", index)) for index in range(len(originals))
            ]
            turns = [(*examples, *question) for examples, question in zip(before, originals, strict=True)]
            yield PromptVariant(f"few_shot_{k}", "few-shot", label, rephrased(eval_model, grader.prompts, turns))

    def _fits(self, eval_model: EvalModel, prompts: Prompts) -> bool:
        needed = eval_model.engine.sampling.max_new_tokens + eval_model.environment.max_observation_tokens
        return max(map(len, prompts.ids)) + needed <= eval_model.context

    def _found(self, eval_model: EvalModel, grader: Grader, variant: PromptVariant) -> VariantResult:
        graded = grader.grade(draw(eval_model, variant.prompts, 1, "chain of thought", greedy=self.greedy))
        (answers,) = zip(*self.answers_of(graded.samples), strict=True)
        return VariantResult(
            graded, list(answers), [self._confidence(eval_model, mine[0]) for mine in graded.samples.by_prompt]
        )

    def _confidence(self, eval_model: EvalModel, one: Sample) -> float | None:
        answer = extract_answer(one.text, self.answer_type)
        return answer_probability(answer, one.ids, one.logps, eval_model.template.decode) if answer else None

    def _point(self, variant: PromptVariant, graded: GradedSamples) -> ScalingPoint:
        samples = graded.samples
        return point(variant.label, graded.firsts(), tokens=fmean(samples.tokens()), seconds=samples.seconds_for(1))

    def _metrics(
        self, variant: PromptVariant, found: VariantResult, direct: VariantResult | None
    ) -> Mapping[str, Estimate]:
        grades = found.graded.firsts()
        metrics = {
            "accuracy": Estimate.of(grades),
            "answered": Estimate.share(found.answered()),
            **confidence_metrics(found),
            "tokens": Estimate.mean(found.graded.samples.tokens(), 0),
            "prompt_tokens": Estimate.mean([float(len(ids)) for ids in variant.prompts.ids], 0),
        }
        if direct is None or variant.name == DIRECT:
            return metrics
        return {**metrics, "gain": Estimate.gain(gains(grades, direct.graded.firsts()))}

    def _columns(self, found: Mapping[str, VariantResult]) -> Mapping[str, Sequence[object]]:
        columns: dict[str, Sequence[object]] = {}
        for name, one in found.items():
            columns[f"{name}/accuracy"] = one.graded.firsts()
            columns[f"{name}/answered"] = one.answered()
            columns[f"{name}/confidence"] = one.confidences
            columns[f"{name}/answer"] = one.answers
            columns[f"{name}/completion"] = [mine[0].text for mine in one.graded.samples.by_prompt]
        return columns


def confidence_metrics(found: VariantResult) -> Mapping[str, Estimate]:
    """Mean confidence and calibration error of the extracted answers; empty without answers."""
    pairs = zip(found.confidences, found.graded.firsts(), strict=True)
    known = [(confidence, grade) for confidence, grade in pairs if confidence is not None]
    if not known:
        return {}
    confidences, grades = zip(*known, strict=True)
    return {
        "confidence": Estimate.mean(confidences, 0, 1),
        "calibration_error": calibration_error(confidences, grades),
    }


def questions(grader: Grader) -> list[Messages]:
    """The turns of each prompt."""
    held_out = {record.row: record.prompt for record in grader.data.records.held_out if isinstance(record, Prompt)}
    return [held_out[row] for row in grader.prompts.row_ids]


def with_suffix(turns: Messages, text: str) -> Messages:
    """The question with a suffix."""
    *earlier, last = turns
    return (*earlier, Message(last.role, f"{last.content} {text}"))


def rephrased(eval_model: EvalModel, prompts: Prompts, turns: Sequence[Messages]) -> Prompts:
    """The prompts with new model inputs; the grader still sees the original question."""
    rows = zip(turns, prompts.row_ids, strict=True)
    return replace(prompts, ids=tuple(eval_model.template.encode_prompt(messages, row=row) for messages, row in rows))


def few_shot_turns(pool: Sequence[Messages], k: int, seed: int) -> Messages:
    """The turns of k examples, sampled by the seed; a prefix of those for a larger k."""
    order = random.Random(seed).sample(range(len(pool)), len(pool))
    return tuple(turn for index in order[:k] for turn in pool[index])


def worked_examples(eval_model: EvalModel, grader: Grader, column: str | None) -> list[Messages]:
    """Training questions with worked answers, as turns; empty if the data has none."""
    prompts = [record for record in grader.data.records.train if isinstance(record, Prompt)]
    if column is not None:
        if column not in grader.data.prompt_columns:
            raise ConfigError(
                f"worked={column}: the training rows have no such column; they have "
                f"{', '.join(grader.data.prompt_columns) or 'none'}"
            )
        return [(*record.prompt, Message("assistant", str(record.columns[column]))) for record in prompts]
    if all(record.columns.get("category") == "sums" for record in prompts):
        return [worked_sum(plain_text(record.prompt)) for record in prompts]
    try:
        train = eval_model.data_as("Demonstration").records.train
    except ConfigError:
        return []
    return [record.messages for record in train if isinstance(record, Demonstration)]


def worked_sum(question: str) -> Messages:
    """One of the world's sums with its steps."""
    return (*user(question), Message("assistant", " " + " ".join(sums.chain(sums.terms_of(question)))))
