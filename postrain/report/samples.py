"""What models wrote for the same prompts, side by side: before and after, run beside run, stage after stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from postrain.report.panels import totals_first
from postrain.report.run_data import Sample

SHOWN = 8


@dataclass(frozen=True)
class Answer:
    """One completion."""

    tag: str
    """Whose it is."""
    text: str
    scores: Mapping[str, float]
    """By name, in the order to be shown."""


@dataclass(frozen=True)
class Shown:
    """A prompt and what was written for it."""

    row: int
    prompt: str
    answers: tuple[Answer, ...]

    def way(self, answer: Answer, name: str) -> str:
        """Whether a score went up or down since the first answer."""
        first = self.answers[0].scores.get(name)
        if answer is self.answers[0] or first is None or abs(answer.scores[name] - first) <= 1e-9:
            return ""
        return "up" if answer.scores[name] > first else "down"


def moments(samples: Sequence[Sample]) -> list[tuple[str, list[Sample]]]:
    """The samples of the first and the last evaluation of a run."""
    updates = sorted({sample.update for sample in samples})
    tags = ("before", "after") if len(updates) > 1 else ("sample",)
    ends = dict(zip(tags, [*updates[:1], *updates[1:][-1:]], strict=False))
    return [(tag, [sample for sample in samples if sample.update == update]) for tag, update in ends.items()]


def last(samples: Sequence[Sample]) -> list[Sample]:
    """The samples of the last evaluation."""
    return moments(samples)[-1][1] if samples else []


def side_by_side(groups: Sequence[tuple[str, Sequence[Sample]]], least: int | None = None) -> list[Shown]:
    """The prompts that at least so many groups share (otherwise all), in the order of the data, not of success."""
    least = len(groups) if least is None else least
    by_key = [(tag, {(sample.row, sample.prompt): sample for sample in samples}) for tag, samples in groups]
    keys = dict.fromkeys(key for _, found in by_key for key in found)
    made = []
    for key in keys:
        there = [(tag, found[key]) for tag, found in by_key if key in found]
        if len(there) >= least:
            answers = tuple(Answer(tag, sample.completion, _ordered(sample.scores)) for tag, sample in there)
            made.append(Shown(*key, answers))
    return _without_repeated_gold(made)


def responses(groups: Sequence[tuple[str, Sequence[Sample]]]) -> list[dict[str, Any]]:
    """The samples as sample_responses.json has them."""
    found = []
    for tag, samples in groups:
        for sample in samples:
            line: dict[str, Any] = {"subject": tag, "prompt": sample.prompt, "completion": sample.completion}
            totals = {name: sample.scores.get(f"{name}/total") for name in ("reward", "gold")}
            found.append(line | {name: value for name, value in totals.items() if value is not None})
    return found


def _ordered(scores: Mapping[str, float]) -> dict[str, float]:
    return {name: scores[name] for name in sorted(scores, key=totals_first)}


def _without_repeated_gold(found: list[Shown]) -> list[Shown]:
    """Where the gold score itself is the reward, saying every number twice helps nobody."""

    def part(answer: Answer, kind: str) -> dict[str, float]:
        return {name.removeprefix(kind): value for name, value in answer.scores.items() if name.startswith(kind)}

    answers = [answer for shown in found for answer in shown.answers]
    if not all(part(answer, "reward/") == part(answer, "gold/") for answer in answers):
        return found
    return [replace(shown, answers=tuple(_rewards_only(answer) for answer in shown.answers)) for shown in found]


def _rewards_only(answer: Answer) -> Answer:
    kept = {name: value for name, value in answer.scores.items() if not name.startswith("gold/")}
    return replace(answer, scores=kept)
