"""Completions of the same prompts, side by side: before and after training, of runs or of pipeline stages.

Also the intervals of scores over these samples. Only saved samples count: if an evaluation
saves fewer samples than it draws, n is smaller and the interval wider than over all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from postrain.evaluation.estimate import Estimate, Interval
from postrain.jsonl import JsonLines, Record, number
from postrain.report.panels import totals_first
from postrain.report.values import LARGEST, mapping, update_of, whole

MOST_PROMPTS = 8
MIN_SAMPLES = 8
"""Samples below which no interval is given."""


@dataclass(frozen=True)
class Sample:
    """A completion, without unusable values of its record."""

    update: int
    row: int
    prompt: str
    completion: str
    scores: dict[str, float]
    """reward/<part> and gold/<part>; parts that could not score are absent."""
    finished: bool | None = None
    """Whether it ended with an end-of-sequence token, where known."""

    @property
    def length(self) -> float:
        """In words; tokens are not saved."""
        return float(len(self.completion.split()))


@dataclass(frozen=True)
class Answer:
    """A completion in a comparison."""

    tag: str
    """The model or the time: before, after, ..."""
    text: str
    scores: Mapping[str, float]
    """By name, in display order."""


@dataclass(frozen=True)
class PromptSamples:
    """A prompt with completions."""

    row: int
    prompt: str
    answers: tuple[Answer, ...]

    def trend(self, answer: Answer, name: str) -> str:
        """Whether a score is above or below that of the first completion: up, down or empty."""
        first = self.answers[0].scores.get(name)
        if answer is self.answers[0] or first is None or abs(answer.scores[name] - first) <= 1e-9:
            return ""
        return "up" if answer.scores[name] > first else "down"


def first_and_last(samples: Sequence[Sample]) -> list[tuple[str, list[Sample]]]:
    """The samples of the first and the last evaluation of a run."""
    updates = sorted({sample.update for sample in samples})
    tags = ("before", "after") if len(updates) > 1 else ("sample",)
    ends = dict(zip(tags, [*updates[:1], *updates[1:][-1:]], strict=False))
    return [(tag, [sample for sample in samples if sample.update == update]) for tag, update in ends.items()]


def last(samples: Sequence[Sample]) -> list[Sample]:
    """The samples of the last evaluation."""
    return first_and_last(samples)[-1][1] if samples else []


def side_by_side(groups: Sequence[tuple[str, Sequence[Sample]]], least: int | None = None) -> list[PromptSamples]:
    """The prompts of at least `least` groups (by default all), in the order of the data, not of their scores."""
    least = len(groups) if least is None else least
    by_key = [(tag, {(sample.row, sample.prompt): sample for sample in samples}) for tag, samples in groups]
    keys = dict.fromkeys(key for _, found in by_key for key in found)
    made = []
    for key in keys:
        present = [(tag, found[key]) for tag, found in by_key if key in found]
        if len(present) >= least:
            answers = tuple(Answer(tag, sample.completion, _ordered(sample.scores)) for tag, sample in present)
            made.append(PromptSamples(*key, answers))
    return _without_repeated_gold(made)


def responses(groups: Sequence[tuple[str, Sequence[Sample]]]) -> list[dict[str, Any]]:
    """The samples as sample_responses.json has them."""
    found = []
    for tag, samples in groups:
        for sample in samples:
            line: dict[str, Any] = {"model": tag, "prompt": sample.prompt, "completion": sample.completion}
            totals = {name: sample.scores.get(f"{name}/total") for name in ("reward", "gold")}
            found.append(line | {name: value for name, value in totals.items() if value is not None})
    return found


def _ordered(scores: Mapping[str, float]) -> dict[str, float]:
    return {name: scores[name] for name in sorted(scores, key=totals_first)}


def _without_repeated_gold(found: list[PromptSamples]) -> list[PromptSamples]:
    """Drops gold scores that all equal the rewards: the gold score is the reward."""

    def part(answer: Answer, kind: str) -> dict[str, float]:
        return {name.removeprefix(kind): value for name, value in answer.scores.items() if name.startswith(kind)}

    answers = [answer for one in found for answer in one.answers]
    if not all(part(answer, "reward/") == part(answer, "gold/") for answer in answers):
        return found
    return [replace(one, answers=tuple(_rewards_only(answer) for answer in one.answers)) for one in found]


def _rewards_only(answer: Answer) -> Answer:
    kept = {name: value for name, value in answer.scores.items() if not name.startswith("gold/")}
    return replace(answer, scores=kept)


def read_samples(path: Path) -> list[Sample]:
    """The samples in a run folder."""
    return [sample for record in JsonLines(path / "samples.jsonl").read() if (sample := sample_of(record)) is not None]


def sample_of(record: Record) -> Sample | None:
    """A line of samples.jsonl; None for one without a prompt and a completion."""
    prompt, completion = record.get("prompt"), record.get("completion")
    if not isinstance(prompt, str) or not isinstance(completion, str):
        return None
    scores = {f"reward/{name}": value for name, value in _scores(record.get("rewards"))}
    scores |= {f"gold/{name}": value for name, value in _scores(record.get("gold"))}
    ended = record.get("finished")
    finished = ended if isinstance(ended, bool) else None
    return Sample(update_of(record), whole(record.get("row"), -1), prompt, completion, scores, finished)


def answers_of(record: Record) -> list[Sample]:
    """The completions of one prompt."""
    texts = record.get("completions")
    found = []
    texts = texts if isinstance(texts, list) else []
    for index in range(len(texts)):
        one = {"completion": texts[index], "finished": _at(record.get("finished"), index)}
        totals = {name: {"total": _at(record.get(name), index)} for name in ("rewards", "gold")}
        found.append(sample_of({**record, **one, **totals}))
    return [sample for sample in found if sample is not None]


def _at(values: Any, index: int) -> Any:
    return values[index] if isinstance(values, list) and index < len(values) else None


def _scores(parts: Any) -> Iterable[tuple[str, float]]:
    """The finite scores; only the total if it equals its single component."""
    found = {name: number(value) for name, value in mapping(parts).items()}
    if len(found) == 2 and "total" in found and len(set(found.values())) == 1:
        found = {"total": found["total"]}
    return [(name, value) for name, value in found.items() if value is not None and abs(value) < LARGEST]


def interval(samples: Sequence[Sample], metric: str, value: float) -> tuple[Interval, int] | None:
    """The 95 % interval of a metric's value over samples, and n; None for a metric that is not a score of samples.

    Also None if the value is outside the interval: then the metric is of other completions or on another scale.
    """
    name = metric.removeprefix("eval/")
    values = [sample.scores[name] for sample in samples if name in sample.scores]
    if len(values) < MIN_SAMPLES:
        return None
    found = Estimate.of(values)
    around = Interval(found.value, found.low, found.high)
    return (around, found.n) if found.low <= value <= found.high else None
