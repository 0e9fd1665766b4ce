"""The panels of a page: the metrics of each, their order, title, meaning and axis label.

A panel without measured metrics is left out; a metric that is in no panel gets a collapsed one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache

from postrain.formatting import figure, short
from postrain.metrics import metric
from postrain.report.values import Curve, is_held_out

HEADLINES = (
    "eval/reward/total", "gold/total", "eval/win_rate", "eval/accuracy", "eval/step_accuracy", "eval/perplexity",
    "eval/kl/exact", "eval/token_accuracy", "eval/completion/length", "eval/loss", "reward/total", "accuracy",
    "kl/exact", "perplexity", "loss",
)  # fmt: skip
"""The metrics of the cards at the top: the first LARGE of them that were measured."""

LARGE = 4

Ends = tuple[float | None, float]
"""A metric before and after training, or so far; None before if it was measured once."""

PANELS = (
    "~reward/total", "gold/*", "eval/greedy/*", "eval/win_rate eval/preference",
    "eval/step_accuracy eval/first_error_accuracy eval/majority_accuracy", "~accuracy",
    "kl/exact eval/kl/exact kl/k1 kl/k3", "eval/reference_logp eval/kl/reference_logp", "~perplexity",
    "~token_accuracy", "~loss", "*reward/chosen *reward/rejected", "*reward/desirable *reward/undesirable", "~margin",
    "~log_ratio/*", "~kl/baseline", "- *logp/chosen *logp/rejected", "- ~length/*", "reward/*", "eval/reward/*",
    "~completion/length", "~completion/finished", "group/frac_reward_zero_std", "pass_rate/*",
    "eval/forgetting/perplexity", "eval/forgetting/fact_accuracy", "- eval/gold/*", "*repetition */loop_share",
    "- *distinct*", "~entropy",
    "policy_loss", "value_loss", "value/explained_variance", "clip_fraction", "grad_norm", "- ratio/mean ratio/max",
    "- kl/coef", "- learning_rate", "- perf/seconds", "- perf/tokens_per_second", "- perf/peak_*",
)  # fmt: skip
"""The metrics of each panel, as patterns. ~ stands for training and held-out data, - for a collapsed panel."""

TITLES = {
    "reward/total": ("Reward", "mean over completions"),
    "gold/*": ("Gold score", "true score of held-out completions, and its components"),
    "eval/win_rate": ("Win rate", ""),
    "eval/step_accuracy": ("Step accuracy", "beside the accuracy of always predicting the more frequent label"),
    "*reward/chosen": (
        "Implicit reward (chosen, rejected)",
        "β × log-ratio to the reference, or the score of a reward model; only the difference matters",
    ),
    "*reward/desirable": ("Implicit reward (desirable, undesirable)", "of single completions, against the KL baseline"),
    "*logp/chosen": ("Log-probability (chosen, rejected)", "summed over tokens"),
    "eval/reward/*": ("Reward components, held-out", "each before weighting, on held-out prompts"),
    "eval/gold/*": ("Gold score, separate task", "on more prompts"),
    "*repetition": ("Repetition", "share of repeated n-grams"),
    "*distinct*": ("Distinct n-grams", "share of n-grams that occur once"),
    "kl/exact": ("KL(policy‖reference)", "exact over the vocabulary, and sampled estimates"),
    "pass_rate/*": ("Pass rates of prompts", "share of the prompts seen with a pass rate in each interval [%]"),
    "reward/*": ("Reward components", "each before weighting"),
}
"""Title and meaning, where they differ from the declaration of the first metric."""


@dataclass(frozen=True)
class Panel:
    """A small figure of related metrics."""

    title: str
    about: str
    """One line on what it means."""
    names: tuple[str, ...]
    primary: bool = True
    """The others are collapsed."""

    @property
    def label(self) -> str:
        """The label of the vertical axis: the unit, for a plain number the title."""
        return metric(self.names[0]).unit or re.split(r"[,\[(]", self.title)[0].strip().lower()


@cache
def panels() -> tuple[Panel, ...]:
    """All panels with patterns as names, in the order of the page."""
    found = []
    for patterns in PANELS:
        names = patterns.removeprefix("- ").replace("~", "")
        first, primary = names.split()[0], not patterns.startswith("-")
        title, about = TITLES.get(first, ("", ""))
        known = metric(first)
        both = (names, f"eval/{names}") if "~" in patterns else tuple(names.split())
        title = titled(title or known.title or short(first).capitalize(), first)
        found.append(Panel(title, about or known.description, both, primary))
    return tuple(found)


def titled(title: str, name: str) -> str:
    """A title with the unit of a metric."""
    unit = metric(name).unit
    return f"{title} [{unit}]" if unit and "[" not in title else title


HIDDEN = ("optimizer_steps", "episodes", "tokens")


def arrange(metrics: Mapping[str, Curve]) -> tuple[list[Panel], list[str]]:
    """The panels with measured metrics, and the metrics that never changed."""
    constant = [name for name, (_, values) in metrics.items() if len(values) > 1 and min(values) == max(values)]
    left = [name for name in metrics if name not in (*HIDDEN, *constant) and not _is_twin(name, metrics)]
    left.sort(key=totals_first)
    arranged = []
    for one in panels():
        names = tuple(dict.fromkeys(name for pattern in one.names for name in left if fnmatchcase(name, pattern)))
        if names:
            arranged.append(replace(one, names=_paired(names)))
            left = [name for name in left if name not in names]
    return arranged + _others(left), [name for name in constant if name not in HIDDEN]


def _paired(names: tuple[str, ...]) -> tuple[str, ...]:
    """Each metric followed by the same one on held-out data, so that panels of the same roles have the same dashes."""
    bases = [name.removeprefix("eval/") for name in names]
    return tuple(sorted(names, key=lambda name: (bases.index(name.removeprefix("eval/")), name.startswith("eval/"))))


def title_of(name: str) -> tuple[str, str]:
    """The title of a figure of one metric, and the metric's own name."""
    fits = (one.title for one in panels() if any(fnmatchcase(name, pattern) for pattern in one.names))
    return next(fits, titled(short(name).capitalize(), name)), short(name)


def axis_of(name: str) -> str:
    """An axis label: a metric with its unit."""
    return titled(short(name), name)


def label_of(name: str) -> str:
    """The label of the vertical axis of curves of one metric: its unit, else its name."""
    return metric(name).unit or short(name)


def totals_first(name: str) -> tuple[bool, bool, bool]:
    """A sort key: rewards before gold scores, sums before their components, training before held-out."""
    return name.startswith("gold/"), not name.endswith("/total"), name.startswith("eval/")


def _is_twin(name: str, metrics: Mapping[str, Curve]) -> bool:
    """Whether a metric repeats another one: the only component of a sum, or a component of the reward that is a gold
    score."""
    group, _, part = name.rpartition("/")
    twins = [f"{group}/total"] if part != "total" else []
    twins += [f"gold/{part}"] if group == "eval/reward" and part != "total" else []
    return any(metrics[name] == metrics[twin] for twin in twins if twin in metrics)


def _others(names: Iterable[str]) -> list[Panel]:
    """A collapsed panel for each remaining metric, together with the same one on held-out data."""
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(name.removeprefix("eval/"), []).append(name)
    return [
        Panel(titled(short(base).capitalize(), base), metric(base).description, tuple(sorted(family)), primary=False)
        for base, family in families.items()
    ]


def smooth(values: list[float], window: int) -> list[float]:
    """The centred moving average; the window is cut at both ends."""
    total = [0.0]
    for value in values:
        total.append(total[-1] + value)
    smoothed = []
    for index in range(len(values)):
        low, high = max(0, index - window // 2), min(len(values), index + window // 2 + 1)
        smoothed.append((total[high] - total[low]) / (high - low))
    return smoothed


def before_and_after(metrics: Mapping[str, Curve], name: str) -> Ends:
    """First and last value of a metric. Of 40 values or more of training data, which differ from batch to batch, the
    means over the first and the last twentieth."""
    updates, values = metrics[name]
    if updates[0] == updates[-1]:
        return None, values[-1]
    count = 1 if is_held_out(name) else max(1, len(values) // 20)
    return sum(values[:count]) / count, sum(values[-count:]) / count


def ends_text(ends: Ends) -> str:
    """A metric before and after training; one value if it was measured once."""
    return " → ".join(figure(value) for value in ends if value is not None)


def headlines(metrics: Mapping[str, Curve]) -> list[tuple[str, float | None, float]]:
    """Name, before and after of the main metrics; a held-out metric replaces the same one on training data."""
    found: list[tuple[str, float | None, float]] = []
    for name in HEADLINES:
        known = {listed.removeprefix("eval/") for listed, _, _ in found}
        if name in metrics and name not in known and len(found) < LARGE:
            found.append((name, *before_and_after(metrics, name)))
    return found


def best_of(name: str, values: Mapping[str, float | None], direction: str | None = None) -> set[str]:
    """The names with the best value of a metric, ties included; empty without a direction or a difference."""
    known = {who: value for who, value in values.items() if value is not None and value == value}
    direction = direction or metric(name).direction
    if direction is None or len(set(known.values())) < 2:
        return set()
    top = (max if direction == "max" else min)(known.values())
    return {who for who, value in known.items() if value == top}
