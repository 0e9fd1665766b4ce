"""How far a proxy reward can be trusted: proxy and gold against the distance to the start (Gao et al. 2023, "Scaling
laws for reward model overoptimization").

Reads what the runs have written: the evaluations in metrics.jsonl of policies that learned from the proxy, and the
completions of a best-of-n generation. Leaves out fitting the paper's curves, which a dozen points do not bear.
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

from postrain.evaluation.scaling.rules import best_of_n_kl
from postrain.formatting import console_table, markdown_table
from postrain.jsonl import JsonLines, atomic_write_text
from postrain.report.pictures import INK, SERIES, STYLE
from postrain.runs.folder import writing
from postrain.types import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TURN = 0.02
"""A fall of the gold score below its peak by less than this is noise."""


@dataclass(frozen=True)
class Point:
    """A policy at one moment, on held-out prompts."""

    kl: float
    """KL(policy ‖ start) of a completion, in nats."""
    proxy: float
    gold: float

    @property
    def distance(self) -> float:
        """√KL, in which the paper's curves are drawn."""
        return math.sqrt(max(self.kl, 0))


@dataclass(frozen=True)
class Curve:
    """One way to optimise the proxy, from the start on."""

    name: str
    points: tuple[Point, ...]

    def turn(self) -> Point | None:
        """Where the gold score is highest, if it has clearly fallen since; None while it has not."""
        peak = max(self.points, key=lambda point: point.gold)
        after = self.points[self.points.index(peak) :]
        return peak if min(point.gold for point in after) < peak.gold - TURN else None


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
    """Best-of-n for n = 1, 2, 4, ... from the completions of a generation: the first n of each prompt compete."""
    answers = JsonLines(folder / "completions.jsonl").read()
    if not answers:
        raise ConfigError(f"{folder}: no completions to choose the best of")
    most = min(len(answer["completions"]) for answer in answers)
    sizes = [2**power for power in range(most.bit_length()) if 2**power <= most]
    return Curve(name, tuple(_best(answers, size) for size in sizes))


def _best(answers: Sequence[Mapping[str, Any]], size: int) -> Point:
    """The mean over a prompt's completions, in groups of `size` next to each other; unscored ones do not compete."""
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
    home = Path(folder)
    with writing(home):
        atomic_write_text(home / "overoptimization.json", json.dumps([asdict(curve) for curve in curves], indent=1))
        atomic_write_text(home / "overoptimization.md", markdown_table(HEADINGS, rows(curves)))
        picture(curves, home / "overoptimization.png")
    # Where there is no terminal, rich knows of 80 columns.
    Console(highlight=False, width=max(Console().width, 104)).print(console_table(HEADINGS, rows(curves), TITLE))


def _runs(runs: Mapping[str, Mapping[str, Any]]) -> Iterator[Curve]:
    for group, branches in runs.items():
        for branch, places in branches.items():
            yield of_run(f"{group} {branch}", Path(places["folder"]))


TITLE = "the proxy's promise and the gold truth, held-out"
HEADINGS = ("optimiser", "proxy", "gold: start → peak → end", "√KL at the end", "gold turns down at √KL")


def rows(curves: Sequence[Curve]) -> list[tuple[str, ...]]:
    """Each curve as a row of the table."""
    found = []
    for curve in curves:
        first, last, turn = curve.points[0], curve.points[-1], curve.turn()
        peak = max(point.gold for point in curve.points)
        gold = f"{first.gold:.2f} → {peak:.2f} → {last.gold:.2f}"
        turned = f"{turn.distance:.1f}" if turn else "not yet"
        found.append((curve.name, f"{first.proxy:.2f} → {last.proxy:.2f}", gold, f"{last.distance:.1f}", turned))
    return found


def picture(curves: Sequence[Curve], path: Path) -> None:
    """Proxy and gold side by side over √KL, a dot where gold turns down."""
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
    axes.set_title("the proxy reward" if quantity == "proxy" else "what it stands for (gold)", loc="left", fontsize=11)
    axes.set_xlabel("√KL to the start, of a completion (√nats)")
    for number, curve in enumerate(curves):
        color = SERIES[number % len(SERIES)]
        x = [point.distance for point in curve.points]
        axes.plot(x, [getattr(p, quantity) for p in curve.points], color=color, label=curve.name, marker=".", lw=1.6)
        if quantity == "gold" and (turn := curve.turn()):
            axes.plot(turn.distance, turn.gold, marker="o", ms=9, mfc="none", mec=INK)
