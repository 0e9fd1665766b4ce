"""Which curves a reader gets to see, in which order, and what each of them means in one line.

A panel that no run of some method fills does not appear; a metric nobody thought of gets a panel of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache

from postrain.formatting import short
from postrain.metrics import metric
from postrain.report.values import Curve

HEADLINES = (
    "eval/reward/total",
    "gold/total",
    "eval/win_rate",
    "eval/accuracy",
    "eval/step_accuracy",
    "eval/perplexity",
    "eval/kl/exact",
    "eval/token_accuracy",
    "eval/completion/length",
    "eval/loss",
    "reward/total",
    "accuracy",
    "kl/exact",
    "perplexity",
    "loss",
)
"""What is shown large, the first few that were measured."""

LARGE = 4


@dataclass(frozen=True)
class Panel:
    """One small picture of metrics that are read together."""

    names: tuple[str, ...]
    """The metrics in it, as patterns in panels()."""
    primary: bool = True
    """Shown at once; the others are folded away."""
    title: str = ""
    """Where it is not that of the first metric's declaration."""
    about: str = ""
    """One line on what it means, likewise."""


def both(*names: str) -> tuple[str, ...]:
    """Metrics in training and on held-out data."""
    return tuple(one for name in names for one in (name, f"eval/{name}"))


def panel(*names: str, primary: bool = True, title: str = "", about: str = "") -> Panel:
    """A panel with the words of its first metric's declaration where none are given."""
    found = metric(names[0])
    return Panel(names, primary, title or found.title or short(names[0]).capitalize(), about or found.sentence)


@cache
def panels() -> tuple[Panel, ...]:
    """All panels, in the order of the page."""
    return (
        panel(*both("reward/total")),
        panel("gold/*"),
        panel("eval/greedy/*"),
        panel("eval/win_rate", "eval/preference", title="Wins"),
        panel(
            "eval/step_accuracy",
            "eval/first_error_accuracy",
            "eval/majority_accuracy",
            title="Steps told right from wrong",
            about="and what saying the commoner label each time would give",
        ),
        panel(*both("accuracy")),
        panel("kl/exact", "eval/kl/exact", "kl/k1", "kl/k3"),
        panel("eval/reference_logp", "eval/kl/reference_logp"),
        panel(*both("perplexity")),
        panel(*both("token_accuracy")),
        panel(*both("loss")),
        panel(
            "*reward/chosen",
            "*reward/rejected",
            title="Scores of the two answers",
            about="only their difference matters",
        ),
        panel(
            "*reward/desirable",
            "*reward/undesirable",
            title="Scores by label",
            about="of single answers, against the baseline",
        ),
        panel(*both("margin")),
        panel("logp_change/*", "eval/logp_change/*"),
        panel(*both("kl/baseline")),
        panel(
            "*logp/chosen",
            "*logp/rejected",
            primary=False,
            title="Log-probability of the two answers",
            about="summed over tokens",
        ),
        panel(*both("length/*"), primary=False),
        panel("reward/*"),
        panel("eval/reward/*", title="Parts, held-out", about="each before weighting, on held-out prompts"),
        panel(*both("completion/length")),
        panel(*both("completion/finished")),
        panel("group/all_equal"),
        panel("eval/forgetting/perplexity"),
        panel("eval/forgetting/fact_accuracy"),
        panel("eval/gold/*", primary=False, title="Gold score, measured apart", about="on more prompts"),
        panel("*repetition", "*/loop_share", title="Repetition", about=metric("repetition").sentence),
        panel("*distinct*", primary=False, title="Variety", about=metric("repetition/distinct_1").sentence),
        panel(*both("entropy")),
        panel("policy_loss"),
        panel("value_loss"),
        panel("value/explained_variance"),
        panel("clip_fraction"),
        panel("grad_norm"),
        panel("ratio/mean", "ratio/max", primary=False),
        panel("kl/coef", primary=False),
        panel("learning_rate", primary=False),
        panel("perf/seconds", primary=False),
        panel("perf/tokens_per_second", primary=False),
        panel("perf/peak_*", primary=False),
    )


HIDDEN = ("optimizer_steps", "episodes", "tokens")


def arrange(metrics: Mapping[str, Curve]) -> tuple[list[Panel], list[str]]:
    """The panels that have something to show, and the metrics that never changed."""
    constant = [name for name, (_, values) in metrics.items() if len(values) > 1 and min(values) == max(values)]
    left = [name for name in metrics if name not in (*HIDDEN, *constant) and not _is_twin(name, metrics)]
    left.sort(key=totals_first)
    shown = []
    for one in panels():
        names = tuple(dict.fromkeys(name for pattern in one.names for name in left if fnmatchcase(name, pattern)))
        if names:
            shown.append(replace(one, names=names))
            left = [name for name in left if name not in names]
    return shown + _others(left), [name for name in constant if name not in HIDDEN]


def title_of(name: str) -> tuple[str, str]:
    """What a picture of one metric is called, and the metric's own name."""
    fits = (one.title for one in panels() if any(fnmatchcase(name, pattern) for pattern in one.names))
    return next(fits, short(name).capitalize()), short(name)


def totals_first(name: str) -> tuple[bool, bool, bool]:
    """A sort key: what is paid before what is known to be good, sums before their parts, training before held-out."""
    return name.startswith("gold/"), not name.endswith("/total"), name.startswith("eval/")


def _is_twin(name: str, metrics: Mapping[str, Curve]) -> bool:
    """Whether this is a curve a second time: the only part of a sum, or a part of the reward that is gold itself."""
    group, _, part = name.rpartition("/")
    twins = [f"{group}/total"] if part != "total" else []
    twins += [f"gold/{part}"] if group == "eval/reward" and part != "total" else []
    return any(metrics[name] == metrics[twin] for twin in twins if twin in metrics)


def _others(names: Iterable[str]) -> list[Panel]:
    """One folded panel for every metric that is left, together with the same one on held-out data."""
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(name.removeprefix("eval/"), []).append(name)
    return [
        Panel(tuple(sorted(family)), False, short(base).capitalize(), metric(base).sentence)
        for base, family in families.items()
    ]


def smooth(values: list[float], window: int) -> list[float]:
    """The mean of the values around each one, as far as there are any."""
    total = [0.0]
    for value in values:
        total.append(total[-1] + value)
    smoothed = []
    for index in range(len(values)):
        low, high = max(0, index - window // 2), min(len(values), index + window // 2 + 1)
        smoothed.append((total[high] - total[low]) / (high - low))
    return smoothed


def before_and_after(curve: Curve) -> tuple[float, float]:
    """First and last value; of a noisy curve the means over its first and last twentieth."""
    values = curve[1]
    count = max(1, len(values) // 20)
    return sum(values[:count]) / count, sum(values[-count:]) / count


def headlines(metrics: Mapping[str, Curve]) -> list[tuple[str, float, float]]:
    """Name, before and after of the few numbers that matter most: no training figure where there is a held-out one."""
    found: list[tuple[str, float, float]] = []
    for name in HEADLINES:
        known = {shown.removeprefix("eval/") for shown, _, _ in found}
        if name in metrics and name not in known and len(found) < LARGE:
            found.append((name, *before_and_after(metrics[name])))
    return found


def best_of(name: str, values: Mapping[str, float | None], direction: str | None = None) -> set[str]:
    """Whose value of a metric is the best, all of equal ones; nobody's where there is nothing to compare."""
    known = {who: value for who, value in values.items() if value is not None and value == value}
    direction = direction or metric(name).direction
    if direction is None or len(set(known.values())) < 2:
        return set()
    top = (max if direction == "max" else min)(known.values())
    return {who for who, value in known.items() if value == top}
