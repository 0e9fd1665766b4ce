"""Metrics: what each one is, declared beside the code that measures it, and which one decides between runs.

`methods/declared.py`, `rollout/declared.py`, `evaluation/declared.py` and `training/declared.py` hold what their rooms
log; they import neither torch nor lightning, so that a report and a help text can read them. Panels, tables, intervals,
verdicts and diagnostics look a name up here. `python -m postrain.metrics` lists all.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib import import_module
from math import inf
from typing import Literal

Direction = Literal["max", "min"]
Bounds = tuple[float, float]

ANY: Bounds = (-inf, inf)
SHARE: Bounds = (0.0, 1.0)
POSITIVE: Bounds = (0.0, inf)

ROOMS = ("rollout", "methods", "evaluation", "training")


@dataclass(frozen=True)
class Metric:
    """A logged number, or a family of them: its name may hold `*`, as reward/* does."""

    name: str
    sentence: str = ""
    unit: str = ""
    """Empty for a plain number."""
    direction: Direction | None = None
    """Which way is better; None where neither is."""
    bounds: Bounds = ANY
    """The least and the largest possible value."""
    title: str = ""
    """Heading of its picture; otherwise the name in words."""


_DECLARED: dict[str, Metric] = {}
CONVENTIONS = (
    Metric("*loss", direction="min", bounds=POSITIVE),
    Metric("*error", direction="min"),
    Metric("*perplexity", direction="min", bounds=(1.0, inf)),
    Metric("*accuracy", direction="max", bounds=SHARE),
    Metric("*rate", direction="max", bounds=SHARE),
)
"""What the name of an undeclared metric suggests: of a user's own code, or of an external benchmark."""
DECIDING_METRICS = (
    "gold/total", "eval/reward/total", "eval/win_rate", "eval/step_accuracy", "eval/accuracy", "eval/perplexity",
    "eval/loss",
)  # fmt: skip
"""Metrics that compare runs whose methods name none; the first that all runs have: the gold score of completions,
then their reward, then accuracy on pairs, then perplexity and loss."""


def declare(
    name: str,
    sentence: str,
    *,
    unit: str = "",
    direction: Direction | None = None,
    bounds: Bounds = ANY,
    title: str = "",
) -> None:
    """Declares a metric, or a family of them with `*` in the name, for training and as eval/<name> for held-out data.

    Raises ValueError where the name is declared differently already.
    """
    found = Metric(name, sentence, unit, direction, bounds, title)
    if _DECLARED.setdefault(name, found) != found:
        raise ValueError(f"the metric {name} is declared twice")
    declared.cache_clear()


def declarations() -> tuple[Metric, ...]:
    """All declared metrics, room by room."""
    for room in ROOMS:
        # By name: the rooms lie above this module, and a declaration imports nothing of its room.
        import_module(f"postrain.{room}.declared")
    return tuple(_DECLARED.values())


@cache
def declared(name: str) -> Metric | None:
    """The declaration of a logged metric, the most specific one that fits; None where nobody declared it."""
    known = {metric.name: metric for metric in declarations()}
    held_out = name.removeprefix("eval/")
    exact = known.get(name) or known.get(held_out)
    fits = [metric for metric in known.values() if "*" in metric.name and fnmatchcase(held_out, metric.name)]
    return exact or max(fits, key=lambda metric: (metric.name.index("*"), len(metric.name)), default=None)


def metric(name: str) -> Metric:
    """The declaration of a metric; of an undeclared one what its name suggests."""
    suggested = (one for one in CONVENTIONS if fnmatchcase(name, one.name))
    return declared(name) or next(suggested, Metric(name))


def direction_of(name: str) -> Direction:
    """min where less is better, else max."""
    return metric(name).direction or "max"


def bounds(name: str) -> Bounds:
    """The least and the largest possible value of a metric; infinite where nothing is known."""
    return metric(name).bounds


def deciding_metric(
    candidates: Sequence[tuple[str, Direction]], measured: Container[str]
) -> tuple[str, Direction] | None:
    """The metric that says how good a run has become, with its direction: the first one that the run has measured.

    `candidates` are the method's own, in order; DECIDING_METRICS come after them. A run on the bundled world is judged
    by its gold score where its method says so; data without gold answers leave the held-out reward to methods that
    learn from one, accuracy to those that learn from pairs, perplexity to those that imitate.
    """
    known = [*candidates, *((name, direction_of(name)) for name in DECIDING_METRICS)]
    return next((candidate for candidate in known if candidate[0] in measured), None)


def comparison_metric(
    own: Iterable[tuple[str, Direction]], measured: Sequence[Container[str]], varied: Iterable[str] = ()
) -> tuple[str, Direction] | None:
    """The metric that compares several finished runs: the one that all are judged by, else one that all have measured.

    `own` is what each run is judged by, `measured` the names of what each has measured, `varied` the keys in which the
    runs differ. None where nothing compares them: different methods on different data, or a reward that varies.
    """
    found = dict.fromkeys(own)
    candidates = [one for one in found if all(one[0] in names for names in measured)]
    candidates.sort(key=lambda one: DECIDING_METRICS.index(one[0]) if one[0] in DECIDING_METRICS else -1)
    if any(key.partition(".")[0] == "reward" for key in varied):
        candidates = [one for one in candidates if "reward/" not in one[0]]
    return next(iter(candidates), None)


def listing() -> str:
    """All declarations as Markdown."""
    rows = [("metric", "unit", "better", "range", "what it is"), ("---",) * 5]
    for one in sorted(declarations(), key=lambda one: one.name):
        low, high = (f"{edge:g}" for edge in one.bounds)
        within = "" if one.bounds == ANY else f"{low} … {high}"
        rows.append((f"`{one.name}`", one.unit, one.direction or "", within, one.sentence))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    # The module itself has a second name when it is run: the declarations go to the first.
    print(import_module("postrain.metrics").listing(), end="")
