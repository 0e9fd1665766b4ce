"""What is known of a metric by its name: the better direction, the possible values, and which metric decides.

Standard library only: the report imports it too. Leaves out how a metric is measured; evaluation/ has that.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from math import inf
from typing import Literal

Direction = Literal["max", "min"]

LESS = (
    "per_token", "per_completion", "unscorable", "loop_share", "looping", "repetition", "refusals_or_empty",
    "bits_per_byte", "all_equal", "one_word",
)  # fmt: skip
SHARES = (
    "accuracy_per_token", "answered", "confidence", "finished", "unscorable", "loop_share", "looping", "repetition",
    "refusals_or_empty", "all_equal", "one_word", "distinct", "acc", "acc_norm", "exact_match", "f1", "error",
    "calibration_error", "worst_phrasing", "sampled", "left_out",
)  # fmt: skip
SIZES = ("length", "tokens", "prompt_tokens", "per_token", "per_completion", "bits_per_byte", "log_ratio_max")
DECIDING = (
    "gold/total", "eval/reward/total", "eval/win_rate", "eval/step_accuracy", "eval/accuracy", "eval/perplexity",
    "eval/loss",
)  # fmt: skip
"""What decides between runs where their methods do not say so, the first that all have: the true worth of completions,
then what they earn, then how well the model tells answers apart, then how well it predicts text."""


def less_is_better(metric: str) -> bool:
    """Whether a metric is good when it is small, by its name."""
    last = metric.rpartition("/")[2]
    return last in LESS or "/kl/" in f"/{metric}" or last.endswith(("loss", "perplexity", "error"))


def direction_of(metric: str) -> Direction:
    """min where less is better, else max."""
    return "min" if less_is_better(metric) else "max"


def bounds(metric: str) -> tuple[float, float]:
    """The least and the largest possible value of a metric, by its name; infinite where nothing is known.

    Shares and gold scores lie in 0 … 1, a KL, a length and a loss are at least 0, a perplexity at least 1, a
    log-probability at most 0. A KL estimate (k1, k3) is not a KL, and a reward may be anything.
    """
    path, last = f"/{metric}", metric.rpartition("/")[2]
    if "/reward/" in path and last != "unscorable":
        return -inf, inf
    if "/gold/" in path or last in SHARES or last.endswith(("accuracy", "rate")) or last.startswith("distinct"):
        return 0.0, 1.0
    if last in SIZES or path.endswith("/kl/exact") or last.endswith("loss"):
        return 0.0, inf
    if last == "reference_logp":
        return -inf, 0.0
    return (1.0, inf) if last.endswith("perplexity") else (-inf, inf)


def judged_by(candidates: Sequence[tuple[str, Direction]], measured: Container[str]) -> tuple[str, Direction] | None:
    """The metric that says how good a run has become, with its direction: the first one that the run has measured.

    `candidates` are the method's own, in order; after them come those of DECIDING. A run on the bundled world is judged
    by its gold score where its method says so; data without gold answers leave the held-out reward to methods that
    learn from one, accuracy to those that learn from pairs, perplexity to those that imitate.
    """
    known = [*candidates, *((name, direction_of(name)) for name in DECIDING)]
    return next((candidate for candidate in known if candidate[0] in measured), None)


def decides(
    own: Iterable[tuple[str, Direction]], measured: Sequence[Container[str]], varied: Iterable[str] = ()
) -> tuple[str, Direction] | None:
    """The metric that compares several finished runs: the one that all are judged by, else one that all have measured.

    `own` is what each run is judged by, `measured` the names of what each has measured, `varied` the keys in which the
    runs differ. None where nothing compares them: different methods on different data, or a reward that varies.
    """
    found = dict.fromkeys(own)
    candidates = [one for one in found if all(one[0] in names for names in measured)]
    candidates.sort(key=lambda one: DECIDING.index(one[0]) if one[0] in DECIDING else -1)
    if any(key.partition(".")[0] == "reward" for key in varied):
        candidates = [one for one in candidates if "reward/" not in one[0]]
    return next(iter(candidates), None)
