"""Statistics of a generation: pass@1, pass@n, mean rewards, with intervals.

Prompts are the unit, since completions of one prompt are not independent. Prompts without a scored completion are left
out and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rich.table import Table

from postrain.evaluation.estimate import Estimate, Interval, reaches, wilson
from postrain.formatting import figure
from postrain.generation.selection import PromptCompletions


@dataclass(frozen=True, kw_only=True)
class GenerationStats:
    """The statistics of a generation; None if nothing could be scored."""

    prompts: int
    samples: int
    """Completions per prompt."""
    unscorable: int
    """Prompts without a scored completion."""
    reward: float | None
    """Mean reward of the scored completions."""
    best: float | None
    """Mean over prompts of the best completion's reward."""
    gold: float | None
    """Mean gold score."""
    gold_of_best: float | None
    """Mean over prompts of the gold score of the completion with the best reward."""
    finished: float
    """Share of completions that are not truncated."""
    sampled: Estimate | None
    """pass@1: the share of correct completions."""
    solved: Interval | None
    """pass@n: the share of prompts with at least one correct completion."""
    greedy: Interval | None
    """The share of correct greedy completions."""


def compute_stats(answers: Sequence[PromptCompletions], threshold: float) -> GenerationStats:
    """The statistics; a completion is correct if its reward is at least `threshold`."""
    scored = [rewards for one in answers if (rewards := [r for r in one.rewards if r is not None])]
    shares = [fmean(float(reaches(r, threshold)) for r in rewards) for rewards in scored]
    greedy = [float(reaches(one.greedy, threshold)) for one in answers if one.greedy is not None]
    return GenerationStats(
        prompts=len(answers),
        samples=len(answers[0].completions) if answers else 0,
        unscorable=len(answers) - len(scored),
        reward=_mean([r for rewards in scored for r in rewards]),
        best=_mean([max(rewards) for rewards in scored]),
        gold=_mean([g for one in answers for g in one.gold if g is not None]),
        gold_of_best=_mean([gold for one in answers if (gold := gold_of_best(one)) is not None]),
        finished=_mean([float(ended) for one in answers for ended in one.finished]) or 0.0,
        sampled=Estimate.share(shares) if shares else None,
        solved=wilson(sum(share > 0 for share in shares), len(shares)) if shares else None,
        greedy=wilson(sum(greedy), len(greedy)) if greedy else None,
    )


def result(found: GenerationStats) -> dict[str, Any]:
    """The content of result.json in the format of a training run; values before and after are equal."""
    rates = {"right/sampled": found.sampled, "right/solved": found.solved, "right/greedy": found.greedy}
    numbers = {name: rate.value for name, rate in rates.items() if rate is not None}
    means = {"reward/total": found.reward, "reward/best": found.best, "gold/total": found.gold}
    numbers |= {name: mean for name, mean in means.items() if mean is not None}
    return {
        "metric": "right/sampled",
        "direction": "max",
        "objective": numbers.get("right/sampled"),
        "headline": [*rates],
        "changes": {name: [value, value] for name, value in numbers.items()},
    }


def table(found: GenerationStats, kept: int, kept_prompts: int, *, scored: bool) -> Table:
    """The console table, a row per known statistic. `scored`: a reward was configured."""
    made = Table(box=None, pad_edge=False, show_header=False)
    made.add_row("prompts", f"{found.prompts} with {found.samples} samples each")
    means = {
        "reward": found.reward,
        "reward of the best of n": found.best,
        "gold score": found.gold,
        "gold score of the best of n": found.gold_of_best,
    }
    for name, value in means.items():
        if value is not None:
            made.add_row(name, figure(value))
    rates = {"accuracy, greedy": found.greedy, "pass@1": found.sampled, f"pass@{found.samples}": found.solved}
    for name, interval in rates.items():
        if interval is not None:
            made.add_row(name, format_interval(interval))
    made.add_row("not truncated", f"{found.finished:.1%}")
    if found.unscorable and scored:
        made.add_row("unscorable", f"{found.unscorable} prompts")
    if kept:
        made.add_row("selected", f"{kept} rows of {kept_prompts} prompts")
    return made


def format_interval(interval: Interval) -> str:
    """A number with its 95 % interval."""
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def gold_of_best(answers: PromptCompletions) -> float | None:
    """The gold score of the completion with the best reward, ties by order of sampling."""
    scored = [(-reward, index) for index, reward in enumerate(answers.rewards) if reward is not None]
    return answers.gold[min(scored)[1]] if scored else None


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
