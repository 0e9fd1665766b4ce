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
    "eval/reward/total", "gold/total", "eval/win_rate", "eval/accuracy", "eval/step_accuracy", "eval/perplexity",
    "eval/kl/exact", "eval/token_accuracy", "eval/completion/length", "eval/loss", "reward/total", "accuracy",
    "kl/exact", "perplexity", "loss",
)  # fmt: skip
"""What is shown large, the first few that were measured."""

LARGE = 4

PANELS = (
    "~reward/total", "gold/*", "eval/greedy/*", "eval/win_rate eval/preference",
    "eval/step_accuracy eval/first_error_accuracy eval/majority_accuracy", "~accuracy",
    "kl/exact eval/kl/exact kl/k1 kl/k3", "eval/reference_logp eval/kl/reference_logp", "~perplexity",
    "~token_accuracy", "~loss", "*reward/chosen *reward/rejected", "*reward/desirable *reward/undesirable", "~margin",
    "~logp_change/*", "~kl/baseline", "- *logp/chosen *logp/rejected", "- ~length/*", "reward/*", "eval/reward/*",
    "~completion/length", "~completion/finished", "group/all_equal", "eval/forgetting/perplexity",
    "eval/forgetting/fact_accuracy", "- eval/gold/*", "*repetition */loop_share", "- *distinct*", "~entropy",
    "policy_loss", "value_loss", "value/explained_variance", "clip_fraction", "grad_norm", "- ratio/mean ratio/max",
    "- kl/coef", "- learning_rate", "- perf/seconds", "- perf/tokens_per_second", "- perf/peak_*",
)  # fmt: skip
"""The metrics of each panel, as patterns; ~ stands for a metric and the same on held-out data, - for a folded panel."""

TITLES = {
    "eval/win_rate": ("Wins", ""),
    "eval/step_accuracy": ("Steps told right from wrong", "and what saying the commoner label each time would give"),
    "*reward/chosen": ("Scores of the two answers", "only their difference matters"),
    "*reward/desirable": ("Scores by label", "of single answers, against the baseline"),
    "*logp/chosen": ("Log-probability of the two answers", "summed over tokens"),
    "eval/reward/*": ("Parts, held-out", "each before weighting, on held-out prompts"),
    "eval/gold/*": ("Gold score, measured apart", "on more prompts"),
    "*repetition": ("Repetition", "share of phrases said before"),
    "*distinct*": ("Variety", "share of phrases that are said only once"),
}
"""Title and meaning where they are not those of the first metric's declaration."""


@dataclass(frozen=True)
class Panel:
    """One small picture of metrics that are read together."""

    title: str
    about: str
    """One line on what it means."""
    names: tuple[str, ...]
    primary: bool = True
    """Shown at once; the others are folded away."""


@cache
def panels() -> tuple[Panel, ...]:
    """All panels with patterns for names, in the order of the page."""
    found = []
    for patterns in PANELS:
        names = patterns.removeprefix("- ").replace("~", "")
        first, primary = names.split()[0], not patterns.startswith("-")
        title, about = TITLES.get(first, ("", ""))
        known = metric(first)
        both = (names, f"eval/{names}") if "~" in patterns else tuple(names.split())
        title = title or known.title or short(first).capitalize()
        found.append(Panel(title, about or known.sentence, both, primary))
    return tuple(found)


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


def axis_of(name: str) -> str:
    """A metric with its unit, for an axis."""
    return ", ".join(filter(None, (short(name), metric(name).unit)))


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
        Panel(short(base).capitalize(), metric(base).sentence, tuple(sorted(family)), primary=False)
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
