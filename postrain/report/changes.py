"""Every held-out metric of a run before and after training, with a 95 % interval of the change where one is known.

Scores of completions are compared prompt by prompt, losses and accuracies row by row (held_out.py): the interval of the
paired differences as in `evaluate`, and a jackknife over rows for means over tokens and perplexities. Win rates,
accuracies of a run that saved no rows, and shares of different rows have the interval of Newcombe (1998, Statistics in
Medicine 17, method 10), which ignores that both measurements are of the same rows and is therefore too wide rather than
too narrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isclose

from postrain.evaluation.estimate import ROUNDING, Estimate, Interval, newcombe, wilson
from postrain.formatting import figure, short
from postrain.jsonl import number
from postrain.metrics import metric
from postrain.report import blocks
from postrain.report.folders import Run
from postrain.report.held_out import HeldOutRows
from postrain.report.panels import HEADLINES, totals_first
from postrain.report.samples import MIN_SAMPLES, Sample, first_and_last, interval
from postrain.report.values import is_held_out, mapping

PER_SET = "no interval: set statistic"
UNSAVED = "no interval: not saved per row"
TOO_FEW = f"no interval: fewer than {MIN_SAMPLES} rows"
OF_SETS = ("completion/distinct", "completion/one_word", "repetition", "kl/log_ratio_max", "log_ratio_max")


@dataclass(frozen=True)
class Change:
    """A held-out metric before and after training."""

    name: str
    before: float
    after: float
    gap: Estimate | None = None
    """After minus before, with its interval and the number of prompts or rows."""
    why: str = ""
    """Why there is no interval."""

    @property
    def constant(self) -> bool:
        """Whether the metric is the same before and after, up to rounding."""
        return isclose(self.before, self.after, rel_tol=ROUNDING, abs_tol=ROUNDING)

    @property
    def better(self) -> bool | None:
        """Whether the change is an improvement; None for no change, or a metric without a direction."""
        direction = metric(self.name).direction
        if direction is None or self.constant:
            return None
        return (self.after > self.before) == (direction == "max")

    @property
    def decided(self) -> bool:
        """Whether the interval of the change excludes 0."""
        return self.gap is not None and not self.gap.low <= 0 <= self.gap.high

    @property
    def interval(self) -> str:
        """The interval of the change, or why there is none."""
        if self.gap is None:
            return self.why
        return f"{signed(self.gap.low)} … {signed(self.gap.high)}"


def signed(value: float) -> str:
    """A number with its sign; 0 up to rounding."""
    value = 0.0 if abs(value) < ROUNDING else value
    return f"{'+' if value > 0 else ''}{figure(value)}"


def changes(run: Run) -> list[Change]:
    """The held-out metrics that were measured before and after training, headline metrics first."""
    groups = dict(first_and_last(run.samples))
    found = []
    for name, (updates, values) in run.metrics.items():
        if is_held_out(name) and updates[0] < updates[-1]:
            gap, why = _of_rows(run, name, values[0], values[-1]) or _gap(run, name, values[0], values[-1], groups)
            found.append(Change(name, values[0], values[-1], gap, why))
    return sorted(found, key=_rank)


def _rank(one: Change) -> tuple[int, bool, bool, tuple[bool, bool, bool], str]:
    """The headline metrics, then those that changed, those with an interval first."""
    index = HEADLINES.index(one.name) if one.name in HEADLINES else len(HEADLINES)
    return index, one.constant, one.gap is None, totals_first(one.name), one.name


def _of_rows(run: Run, name: str, before: float, after: float) -> tuple[Estimate, str] | None:
    """The change of a metric whose rows are saved."""
    if saved := _log_perplexity(run, name):
        return saved.change_of_perplexity(before, after), ""
    known = _rows_of(run, name)
    return None if known is None else (known.change(), "")


def _rows_of(run: Run, name: str) -> HeldOutRows | None:
    """The saved rows of a metric, if they are enough for an interval."""
    known = run.held_out.get(name.removeprefix("eval/"))
    return None if known is None or known.n < MIN_SAMPLES else known


def _log_perplexity(run: Run, name: str) -> HeldOutRows | None:
    """The saved rows of the loss whose exponential a perplexity is, if they are enough for an interval; None for other
    metrics."""
    return next(filter(None, (_rows_of(run, loss) for loss in _log_perplexity_names(name))), None)


def _log_perplexity_names(name: str) -> tuple[str, ...]:
    """The losses whose exponential a perplexity may be; empty for other metrics."""
    base = name.removeprefix("eval/")
    part = base.removesuffix("perplexity")
    return (f"{part}nll", f"{part}loss") if base == f"{part}perplexity" else ()


def _gap(
    run: Run, name: str, before: float, after: float, groups: Mapping[str, Sequence[Sample]]
) -> tuple[Estimate | None, str]:
    base = name.removeprefix("eval/")
    if (n := _share_of(run, name, groups.get("after", ()))) and 0 <= before <= 1 and 0 <= after <= 1:
        return newcombe(before, after, n), ""
    parts = [f"{part}/" for part in mapping(run.data.get("held_out")) if base.startswith(f"{part}/")]
    whole = base.removeprefix(parts[0]) if parts else base
    if whole in OF_SETS:
        return None, PER_SET
    if any(each in run.held_out for each in (base, *_log_perplexity_names(name))):
        return None, TOO_FEW
    of_data = name.startswith(("eval/gold/", "eval/reward/chosen", "eval/reward/rejected"))
    if of_data or not base.startswith(("gold/", "reward/")):
        return None, UNSAVED
    first, last = (groups.get(tag, ()) for tag in ("before", "after"))
    if not all(interval(of, name, value) for of, value in ((first, before), (last, after))):
        return None, UNSAVED
    earlier = {(one.row, one.prompt): one.scores[base] for one in first if base in one.scores}
    pairs = [
        (one.scores[base], earlier[key])
        for one in last
        if (key := (one.row, one.prompt)) in earlier and base in one.scores
    ]
    if len(pairs) < MIN_SAMPLES:
        return None, UNSAVED
    return Estimate.paired([mine for mine, _ in pairs], [theirs for _, theirs in pairs]), ""


def _share_of(run: Run, name: str, samples: Sequence[Sample]) -> int:
    """How many rows or completions a metric is a share of; 0 for a metric that is not such a share."""
    rows = {f"eval/{part}/accuracy": rows for part, rows in mapping(run.data.get("held_out")).items()}
    rows["eval/accuracy"] = run.data.get("rows_eval")
    return int(number(rows.get(name)) or 0) or (len(samples) if name == "eval/win_rate" else 0)


def interval_after(run: Run, samples: Sequence[Sample], name: str) -> tuple[Interval, int] | None:
    """The 95 % interval of a held-out metric after training, and n; `samples` are those of the last evaluation. None
    where it is not known."""
    after = run.after(name)
    if after is None or not is_held_out(name):
        return None
    if saved := _log_perplexity(run, name):
        return saved.perplexity(after), saved.n
    if rows := _rows_of(run, name):
        known = rows.last()
        return Interval(after, known.low, known.high), known.n
    n = _share_of(run, name, samples)
    return (wilson(after * n, n), n) if n and 0 <= after <= 1 else interval(samples, name, after)


def change_table(found: Sequence[Change]) -> blocks.Table:
    """A row for each metric: before, after, the change with its interval."""
    rows = [
        (
            short(one.name),
            [
                blocks.Cell(figure(one.before), numbers=(one.before, None, None, None)),
                blocks.Cell(figure(one.after), numbers=(one.after, None, None, None)),
                _cell(one),
            ],
        )
        for one in found
    ]
    return blocks.Table(("held-out metric", "before", "after", "change"), rows, about=INTERVALS)


def _cell(one: Change) -> blocks.Cell:
    gap, value = one.gap, one.after - one.before
    if gap is None:
        return blocks.Cell(signed(value), one.why, numbers=(value, None, None, None))
    return blocks.Cell(signed(value), f"{one.interval}, n={gap.n}", numbers=(value, gap.low, gap.high, gap.n))


INTERVALS = "Below each change its 95 % interval and the number of prompts or rows, or why there is none."
