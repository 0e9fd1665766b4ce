"""Declarations of metrics (meaning, unit, range, direction), and the choice of the metric that compares runs.

`methods/declared.py`, `rollout/declared.py`, `evaluation/declared.py` and `training/declared.py` declare the metrics
of their packages; they import neither torch nor lightning, so that reports and help texts can read them. Panels,
tables, intervals, verdicts and diagnostics use these declarations. `python -m postrain.metrics` lists all.
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

PACKAGES = ("rollout", "methods", "evaluation", "training")


@dataclass(frozen=True)
class Metric:
    """A logged number, or a family of them if the name contains `*`, as in reward/*."""

    name: str
    description: str = ""
    unit: str = ""
    """Empty for a dimensionless number."""
    direction: Direction | None = None
    """Whether a larger or a smaller value is better; None if neither."""
    bounds: Bounds = ANY
    """The least and the largest possible value."""
    title: str = ""
    """Title of its panel; by default the name in words."""


_DECLARED: dict[str, Metric] = {}
CONVENTIONS = (
    Metric("*loss", direction="min", bounds=POSITIVE),
    Metric("*error", direction="min"),
    Metric("*perplexity", direction="min", bounds=(1.0, inf)),
    Metric("*accuracy", direction="max", bounds=SHARE),
    Metric("*rate", direction="max", bounds=SHARE),
)
"""Defaults for undeclared metrics, such as those of user code or of an external benchmark, by name."""
DECIDING_METRICS = (
    "gold/total", "eval/reward/total", "eval/win_rate", "eval/step_accuracy", "eval/accuracy", "eval/perplexity",
    "eval/loss",
)  # fmt: skip
"""Default metrics for comparing runs, in order of preference: gold score and reward of completions, win rate, accuracy
on pairs, perplexity, loss. The first one that all runs have measured is used."""


def declare(
    name: str,
    description: str,
    *,
    unit: str = "",
    direction: Direction | None = None,
    bounds: Bounds = ANY,
    title: str = "",
) -> None:
    """Declares a metric, or a family with `*` in the name, for training and as eval/<name> for held-out data.

    Raises ValueError if the name already has a different declaration.
    """
    found = Metric(name, description, unit, direction, bounds, title)
    if _DECLARED.setdefault(name, found) != found:
        raise ValueError(f"the metric {name} is declared twice")
    declared.cache_clear()


def declarations() -> tuple[Metric, ...]:
    """All declared metrics, package by package."""
    for package in PACKAGES:
        # By name: these packages are above this module in the import order.
        import_module(f"postrain.{package}.declared")
    return tuple(_DECLARED.values())


@cache
def declared(name: str) -> Metric | None:
    """The most specific declaration that matches a logged metric; None if it is undeclared.

    eval/PART/METRIC of a part of the held-out rows is declared as METRIC.
    """
    known = {metric.name: metric for metric in declarations()}
    held_out = name.removeprefix("eval/")
    exact = known.get(name) or known.get(held_out)
    matches = [metric for metric in known.values() if "*" in metric.name and fnmatchcase(held_out, metric.name)]
    found = exact or max(matches, key=lambda metric: (metric.name.index("*"), len(metric.name)), default=None)
    if found is None and held_out != name and "/" in held_out:
        return declared(f"eval/{held_out.partition('/')[2]}")
    return found


def metric(name: str) -> Metric:
    """The declaration of a metric; for an undeclared one, the defaults that its name suggests (CONVENTIONS)."""
    suggested = (one for one in CONVENTIONS if fnmatchcase(name, one.name))
    return declared(name) or next(suggested, Metric(name))


def direction_of(name: str) -> Direction:
    """ "min" if a smaller value is better, else "max"."""
    return metric(name).direction or "max"


def bounds(name: str) -> Bounds:
    """The least and the largest possible value of a metric; infinite if unknown."""
    return metric(name).bounds


def deciding_metric(
    candidates: Sequence[tuple[str, Direction]], measured: Container[str]
) -> tuple[str, Direction] | None:
    """The metric that a run is judged by, with its direction: the first candidate that the run has measured.

    `candidates` are those of the method, in order; DECIDING_METRICS follow. Typical results: the gold score on the
    bundled world; on data without gold answers the held-out reward for RL, accuracy for preference methods, and
    perplexity for supervised methods.
    """
    known = [*candidates, *((name, direction_of(name)) for name in DECIDING_METRICS)]
    return next((candidate for candidate in known if candidate[0] in measured), None)


def comparison_metric(
    own: Iterable[tuple[str, Direction]], measured: Sequence[Container[str]], varied: Iterable[str] = ()
) -> tuple[str, Direction] | None:
    """The metric that compares several finished runs: one that judges a run and that all runs have measured.

    `own` is the deciding metric of each run, `measured` the names of the metrics of each run, `varied` the keys in
    which the runs differ. None if no metric is comparable: different methods on different data, or a varied reward.
    """
    found = dict.fromkeys(own)
    candidates = [one for one in found if all(one[0] in names for names in measured)]
    candidates.sort(key=lambda one: DECIDING_METRICS.index(one[0]) if one[0] in DECIDING_METRICS else -1)
    if any(key.partition(".")[0] == "reward" for key in varied):
        candidates = [one for one in candidates if "reward/" not in one[0]]
    return next(iter(candidates), None)


def listing() -> str:
    """All declarations as Markdown."""
    rows = [("metric", "unit", "better", "range", "description"), ("---",) * 5]
    for one in sorted(declarations(), key=lambda one: one.name):
        low, high = (f"{edge:g}" for edge in one.bounds)
        within = "" if one.bounds == ANY else f"{low} … {high}"
        rows.append((f"`{one.name}`", one.unit, one.direction or "", within, one.description))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    # As a script this module is __main__; the declarations are registered in postrain.metrics.
    print(import_module("postrain.metrics").listing(), end="")
