"""Which curves a reader gets to see, in which order, and what each of them means in one line.

A panel that no run of some method fills does not appear; a metric nobody thought of gets a panel of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from postrain.formatting import short
from postrain.report.run_data import Curve

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
    """One small picture."""

    title: str
    about: str
    names: tuple[str, ...]
    """The metrics in it."""
    primary: bool = True
    """Shown at once; the others are folded away."""


# Title, one line on what it means, the metrics (as patterns), whether it is shown at once.
PANELS = (
    Panel("Reward", "what the policy is paid, mean of a batch", ("reward/total", "eval/reward/total")),
    Panel("Gold score", "what is known to be good, on held-out prompts", ("gold/*",)),
    Panel("Likeliest completions", "the same, drawn greedily", ("eval/greedy/*",)),
    Panel("Wins", "how often a completion is preferred to the start's", ("eval/win_rate", "eval/preference")),
    Panel(
        "Steps told right from wrong",
        "and what saying the commoner label each time would give",
        ("eval/step_accuracy", "eval/first_error_accuracy", "eval/majority_accuracy"),
    ),
    Panel("Accuracy", "how often the chosen answer gets the higher score", ("accuracy", "eval/accuracy")),
    Panel(
        "KL to the start", "how far the model has moved, nats a token", ("kl/exact", "eval/kl/exact", "kl/k1", "kl/k3")
    ),
    Panel(
        "Likelihood under the reference",
        "log-probability of a sampled token, nats; it falls where the language breaks",
        ("eval/reference_logp", "eval/kl/reference_logp"),
    ),
    Panel("Perplexity", "how many tokens the model hesitates between", ("perplexity", "eval/perplexity")),
    Panel(
        "Token accuracy", "how often the likeliest token is the right one", ("token_accuracy", "eval/token_accuracy")
    ),
    Panel("Loss", "what is minimised", ("loss", "eval/loss")),
    Panel("Scores of the two answers", "only their difference matters", ("*reward/chosen", "*reward/rejected")),
    Panel("Scores by label", "of single answers, against the baseline", ("*reward/desirable", "*reward/undesirable")),
    Panel("Margin", "score of the good minus the bad answer", ("margin", "eval/margin")),
    Panel("Likelier than at the start", "log-probability of an answer now minus then, nats", ("*logp_change/*",)),
    Panel("KL baseline", "what a completion has to gain to count as good", ("kl/baseline", "eval/kl/baseline")),
    Panel("Log-probability of the two answers", "summed over tokens", ("*logp/chosen", "*logp/rejected"), False),
    Panel("Lengths in the data", "tokens of the answers learned from", ("length/*", "eval/length/*"), False),
    Panel("Parts of the reward", "each before weighting", ("reward/*",)),
    Panel("Parts, held-out", "each before weighting, on held-out prompts", ("eval/reward/*",)),
    Panel("Length", "tokens of a completion", ("completion/length", "eval/completion/length")),
    Panel(
        "Finished", "share of completions that end by themselves", ("completion/finished", "eval/completion/finished")
    ),
    Panel("Groups that agree", "share whose completions all earn the same: nothing to learn", ("group/all_equal",)),
    Panel("Base text", "how well text is foreseen that training is not about", ("eval/forgetting/perplexity",)),
    Panel("Base facts", "share still known of what training is not about", ("eval/forgetting/fact_accuracy",)),
    Panel("Gold score, measured apart", "on more prompts", ("eval/gold/*",), False),
    Panel("Repetition", "share of phrases said before", ("*repetition", "*/loop_share")),
    Panel("Variety", "share of phrases that are said only once", ("*distinct*",), False),
    Panel("Entropy", "how undecided the policy is, nats a token", ("entropy", "eval/entropy")),
    Panel("Policy loss", "near 0 by construction: its gradient does the work", ("policy_loss",)),
    Panel("Value loss", "half the squared error of the critic", ("value_loss",)),
    Panel("Explained variance", "1 is a perfect critic, 0 a constant one", ("value/explained_variance",)),
    Panel("Clipped tokens", "share that moved further than the clip range", ("clip_fraction",)),
    Panel("Gradient norm", "before clipping", ("grad_norm",)),
    Panel("Ratio", "probability of a token now over when it was sampled", ("ratio/mean", "ratio/max"), False),
    Panel("KL coefficient", "the price of a nat", ("kl/coef",), False),
    Panel("Learning rate", "", ("learning_rate",), False),
    Panel("Seconds per update", "median of the last updates", ("perf/seconds",), False),
    Panel("Tokens per second", "", ("perf/tokens_per_second",), False),
    Panel("Peak memory", "GB", ("perf/peak_*",), False),
)
HIDDEN = ("optimizer_steps", "episodes", "tokens")


def arrange(metrics: Mapping[str, Curve]) -> tuple[list[Panel], list[str]]:
    """The panels that have something to show, and the metrics that never changed."""
    constant = [name for name, (_, values) in metrics.items() if len(values) > 1 and min(values) == max(values)]
    left = [name for name in metrics if name not in (*HIDDEN, *constant) and not _is_twin(name, metrics)]
    left.sort(key=totals_first)
    panels = []
    for panel in PANELS:
        names = tuple(dict.fromkeys(name for pattern in panel.names for name in left if fnmatchcase(name, pattern)))
        if names:
            panels.append(Panel(panel.title, panel.about, names, panel.primary))
            left = [name for name in left if name not in names]
    return panels + _others(left), [name for name in constant if name not in HIDDEN]


def title_of(metric: str) -> tuple[str, str]:
    """What a picture of one metric is called, and the metric's own name."""
    fits = (panel.title for panel in PANELS if any(fnmatchcase(metric, pattern) for pattern in panel.names))
    return next(fits, short(metric).capitalize()), short(metric)


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
    return [Panel(short(base).capitalize(), "", tuple(sorted(family)), False) for base, family in families.items()]


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


# How a metric is good, by what stands in its name; the first that fits. What fits nothing is a matter of taste.
WAYS = (
    ("max", "*non_repetition *reward/* *gold/* *accuracy* *win_rate *finished *distinct*"),
    ("min", "*loss *perplexity *repetition *loop* *kl/* */error *refusals* *unscorable */per_token */per_completion"),
    ("max", "*consistency *agreement* *worst_phrasing *margin *oracle *gain *one_sample *greedy *sampled"),
)


def better(name: str) -> str | None:
    """Whether more of a metric is better, "max", or less of it, "min"; None where nobody can say."""
    for way, patterns in WAYS:
        if any(fnmatchcase(name, pattern) for pattern in patterns.split()):
            return way
    return None


def best_of(name: str, values: Mapping[str, float | None], direction: str | None = None) -> set[str]:
    """Whose value of a metric is the best, all of equal ones; nobody's where there is nothing to compare."""
    known = {who: value for who, value in values.items() if value is not None and value == value}
    direction = direction or better(name)
    if direction is None or len(set(known.values())) < 2:
        return set()
    top = (max if direction == "max" else min)(known.values())
    return {who for who, value in known.items() if value == top}
