"""Reward overoptimization: proxy and gold reward against the distance to the reference policy (Gao et al. 2023,
"Scaling laws for reward model overoptimization").

Reads the evaluations in metrics.jsonl of policies trained on the proxy, and the completions of a best-of-n generation.
Does not fit the paper's curves, for which a dozen points are too few.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.console import Console

from postrain.errors import ConfigError
from postrain.evaluation.scaling.rules import best_of_n_kl, powers_of_two
from postrain.formatting import console_table, markdown_table
from postrain.jsonl import JsonLines, atomic_write_text
from postrain.report.palette import DASHES, INK, SERIES
from postrain.report.pictures import STYLE
from postrain.runs.folder import writing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIN_FALL = 0.02
"""A smaller fall of the gold score below its peak counts as noise."""


@dataclass(frozen=True)
class Point:
    """A policy at one evaluation, on held-out prompts."""

    kl: float
    """KL(policy‖reference) in nats per completion."""
    proxy: float
    gold: float

    @property
    def distance(self) -> float:
        """√KL, the horizontal axis of the paper's figures."""
        return math.sqrt(max(self.kl, 0))


@dataclass(frozen=True)
class Curve:
    """A method of optimising the proxy; the first point is the reference policy."""

    name: str
    points: tuple[Point, ...]

    def gold_peak(self) -> Point | None:
        """The peak of the gold score, if it has fallen by more than MIN_FALL since; else None."""
        peak = max(self.points, key=lambda point: point.gold)
        after = self.points[self.points.index(peak) :]
        return peak if min(point.gold for point in after) < peak.gold - MIN_FALL else None


def of_run(name: str, folder: Path) -> Curve:
    """A training run's evaluations. Raises ConfigError where it has measured no gold score or no KL."""
    wanted = ("eval/kl/exact", "eval/completion/length", "eval/reward/total", "gold/total")
    records = [record for record in JsonLines(folder / "metrics.jsonl").read() if all(key in record for key in wanted)]
    if not records:
        raise ConfigError(f"{folder}: no evaluation with {', '.join(wanted)}; set evaluation.completions above 0")
    return Curve(
        name,
        tuple(
            # The exact KL is a mean over tokens: a completion's is that times its mean length.
            Point(record[wanted[0]] * record[wanted[1]], record[wanted[2]], record[wanted[3]])
            for record in records
        ),
    )


def of_samples(name: str, folder: Path) -> Curve:
    """Best-of-n for n = 1, 2, 4, ...: means over groups of n consecutive completions of a generation's prompts."""
    answers = JsonLines(folder / "completions.jsonl").read()
    if not answers:
        raise ConfigError(f"{folder}: no completions to choose the best of")
    most = min(len(answer["completions"]) for answer in answers)
    return Curve(name, tuple(_best(answers, size) for size in powers_of_two(most)))


def _best(answers: Sequence[Mapping[str, Any]], size: int) -> Point:
    """Best of each group of `size` consecutive completions of a prompt; unscored completions are left out."""
    best = []
    for answer in answers:
        scores = list(zip(answer["rewards"], answer["gold"], strict=True))
        for start in range(0, len(scores) - size + 1, size):
            scored = [pair for pair in scores[start : start + size] if None not in pair]
            best += [max(scored, key=itemgetter(0))] if scored else []
    return Point(best_of_n_kl(size), fmean(proxy for proxy, _ in best), fmean(gold for _, gold in best))


def overoptimization(*, folder: str, runs: Mapping[str, Mapping[str, Any]], samples: Mapping[str, str]) -> None:
    """Writes overoptimization.png, .md and .json into `folder`, and prints the table.

    `runs` are groups of training runs, {group: {branch: {folder: ...}}}; `samples` is a best-of-n generation.
    """
    curves = [*_runs(runs), of_samples("best of n", Path(samples["folder"]))]
    output = Path(folder)
    with writing(output):
        atomic_write_text(output / "overoptimization.json", json.dumps([asdict(curve) for curve in curves], indent=1))
        atomic_write_text(output / "overoptimization.md", markdown_table(HEADINGS, rows(curves)))
        picture(curves, output / "overoptimization.png")
    # Without a terminal rich assumes 80 columns.
    Console(highlight=False, width=max(Console().width, 104)).print(console_table(HEADINGS, rows(curves), TITLE))


def _runs(runs: Mapping[str, Mapping[str, Any]]) -> Iterator[Curve]:
    for group, branches in runs.items():
        for branch, stage in branches.items():
            yield of_run(f"{group} {branch}", Path(stage["folder"]))


TITLE = "proxy and gold reward, held-out"
HEADINGS = ("optimiser", "proxy", "gold: reference → peak → end", "√KL at the end", "√KL at the gold peak")


def rows(curves: Sequence[Curve]) -> list[tuple[str, ...]]:
    """Each curve as a row of the table."""
    found = []
    for curve in curves:
        first, last, fallen = curve.points[0], curve.points[-1], curve.gold_peak()
        peak = max(point.gold for point in curve.points)
        gold = f"{first.gold:.2f} → {peak:.2f} → {last.gold:.2f}"
        peak_distance = f"{fallen.distance:.1f}" if fallen else "no fall"
        found.append((curve.name, f"{first.proxy:.2f} → {last.proxy:.2f}", gold, f"{last.distance:.1f}", peak_distance))
    return found


def picture(curves: Sequence[Curve], path: Path) -> None:
    """Proxy and gold over √KL, with a circle at the peak of gold."""
    import matplotlib  # noqa: PLC0415 - start-up time
    from matplotlib.figure import Figure  # noqa: PLC0415 - start-up time

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 4.2), layout="constrained", facecolor="white")
        for axes, quantity in zip(figure.subplots(1, 2), ("proxy", "gold"), strict=True):
            _draw(axes, curves, quantity)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False)
        figure.savefig(path, dpi=110)


def _draw(axes: Axes, curves: Sequence[Curve], quantity: str) -> None:
    axes.set_title("Proxy reward" if quantity == "proxy" else "Gold score", loc="left", fontsize=11)
    axes.set_xlabel("√KL(policy‖reference) [√nats/completion]")
    axes.set_ylabel(quantity)
    for number, curve in enumerate(curves):
        color, dash = SERIES[number % len(SERIES)], DASHES[number % len(DASHES)]
        style = (0, dash) if dash else "-"
        x = [point.distance for point in curve.points]
        axes.plot(
            x, [getattr(p, quantity) for p in curve.points], color=color, label=curve.name, marker=".", lw=1.6, ls=style
        )
        if quantity == "gold" and (top := curve.gold_peak()):
            axes.plot(top.distance, top.gold, marker="o", ms=9, mfc="none", mec=INK)
