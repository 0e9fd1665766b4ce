"""The answer of a sweep: a table of its settings for the console and Markdown, and sentences. Of a sweep of pipelines
with claims, a table of verdicts.

The sentences compare the best setting with the next one and with the untrained model, over shared seeds and in every
metric of the question, and name the settings that collapsed. Differences are paired by seed: equal seeds share data
order and samples, so the interval of the differences is narrower than that of two separate means. A difference is
decided when its 95 % interval (Student's t; anytime-valid if seeds were added until it was) excludes 0; with fewer than
two shared seeds, or with the same difference in all of them, it never is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import comb, inf
from statistics import fmean

from rich.table import Table

from postrain.evaluation.estimate import Interval, gap_interval, mean_interval
from postrain.formatting import console_table, duration, figure, markdown_table, short
from postrain.jsonl import number
from postrain.metrics import bounds
from postrain.report.claims import claims_of_jobs, verdict_rows, verdict_sentences
from postrain.report.sequential import decide, paired_interval
from postrain.report.sweep_cells import Cell, JobResult, before, values_of
from postrain.report.sweep_results import SweepResult, numeric_key

ABOUT = (
    "Means over seeds with 95 % intervals (Student's t, on the log scale for non-negative metrics, on the logit scale "
    "for shares); none for a single seed or equal values. n is the number of finished jobs. untrained: the same "
    "jobs before their first update."
)


def result(cell: Cell) -> str:
    """The deciding metric of its jobs, before → after where both were measured; means over seeds."""
    done = [job for job in cell.jobs if job.metric in job.values]
    if not done:
        return ""
    name = str(done[0].metric)
    ends = [[*job.changes.get(name, (job.values[name],))] for job in done]
    means = [figure(fmean(values)) for values in zip(*ends, strict=False)]
    return f"{short(name)} {' → '.join(means)}"


def finished(cell: Cell) -> str:
    """The number of finished jobs, and how many of the others timed out."""
    if cell.n == len(cell.jobs):
        return f"{cell.n}"
    late = sum(job.timed_out for job in cell.jobs)
    return f"{cell.n} of {len(cell.jobs)}" + (f", {late} timed out" if late else "")


def note(cell: Cell) -> str:
    """Whether its policy collapsed, and in how many jobs."""
    collapsed = len(cell.collapsed)
    return "" if not collapsed else "collapsed" if collapsed == cell.n else f"collapsed in {collapsed} of {cell.n}"


def rows(study: SweepResult) -> tuple[list[str], list[tuple[bool, list[str]]]]:
    """Column names; for each row whether it is the best, and its cells."""
    if claims := claims_of_jobs(study.jobs):
        return verdict_rows(claims)
    names, best = study.measured_columns(), study.best
    keys = [key.rpartition(".")[2] for key in study.settings]
    keys = keys if len(set(keys)) == len(keys) else [*study.settings]
    own = [] if study.metric else ["result"]
    notes = ["note"] if any(map(note, study.cells)) else []
    made = []
    for cell in study.untrained:
        means = [str(cell.values[name]) if name in cell.values else "" for name in names]
        made.append((False, [cell.label, *[""] * (len(keys) - 1), *means, *[""] * len(notes), f"{cell.n}", ""]))
    for cell in study.cells:
        chosen = [str(cell.settings.get(key, "")) for key in study.settings]
        means = [str(cell.values[name]) if name in cell.values else "" for name in names]
        ends = [result(cell)] if own else []
        remarks = [note(cell)] if notes else []
        row = [*(chosen or ["all"]), *ends, *means, *remarks, finished(cell), duration(cell.seconds)]
        made.append((cell is best, row))
    return [*(keys or ["jobs"]), *own, *map(short, names), *notes, "n", "time"], made


def table(study: SweepResult) -> Table:
    """The table for the console."""
    columns, lines = rows(study)
    return console_table(columns, [line for _, line in lines], best=[i for i, (best, _) in enumerate(lines) if best])


def markdown(study: SweepResult) -> str:
    """The table as Markdown, with the answer and the jobs that are unfinished or ended early."""
    columns, lines = rows(study)
    body = [[f"**{text}**" if best and text else text for text in line] for best, line in lines]
    text = f"# {study.name}\n\n{study.question}\n\n" if study.question else f"# {study.name}\n\n"
    text += markdown_table(columns, body)
    if study.cells and not claims_of_jobs(study.jobs):
        text += f"\n{ABOUT}\n"
    text += "".join(f"\n{line}\n" for line in sentences(study))
    listed = [job for job in study.jobs if job.state != "done" or job.reason]
    if listed:
        text += "\n" + markdown_table(
            ["job", "state", "reason"], [(job.label, job.state, job.reason) for job in listed]
        )
    return text


def sentences(study: SweepResult) -> list[str]:
    """The answer in lines of one or two sentences; empty while no job has finished."""
    if not any(cell.n for cell in study.cells):
        return []
    if claims := claims_of_jobs(study.jobs):
        return verdict_sentences(claims)
    return [*_compared(study), *_decided(study), *_range(study), *_against_untrained(study), *_collapsed(study)]


def paired(one: Mapping[int | None, float], other: Mapping[int | None, float], metric: str) -> tuple[Interval, int]:
    """The mean difference over shared seeds with its 95 % interval, and the number of shared seeds.

    The difference of two shares is between -1 and 1. Without a shared seed the value is nan; with one, and with equal
    differences, the interval is infinite.
    """
    gaps = [one[seed] - other[seed] for seed in one if seed in other]
    if not gaps:
        return Interval(float("nan"), -inf, inf), 0
    low, high = bounds(metric)
    return gap_interval(gaps, low - high, high - low) if high < inf else gap_interval(gaps), len(gaps)


def _compared(study: SweepResult) -> Iterable[str]:
    """The best setting against the next one."""
    metric, ranked = study.metric, study.ranked
    if metric is None:
        own = dict.fromkeys(job.metric for job in study.jobs if job.values and job.metric)
        why = f"the deciding metrics of their methods are {', '.join(own)}" if len(own) > 1 else "the reward varies"
        yield f"No metric is common to all settings: {why}. Choose one with sweep.metric=NAME."
    elif len(ranked) == 1:
        yield f"{_has(ranked[0], metric)}; no other setting has finished, so there is nothing to compare."
    elif ranked:
        best, following = ranked[:2]
        most = max if study.direction == "max" else min
        name = f"the {'highest' if study.direction == 'max' else 'lowest'} {short(metric)}"
        if best.values[metric].value != most(cell.values[metric].value for cell in ranked):
            name += " of the settings that are not beaten"
        means = [f"{cell.values[metric]} (n={cell.n})" for cell in (best, following)]
        yield f"{best.label} has {name}, {means[0]}; next is {following.label} with {means[1]}."
        yield f"{_difference(study, best, following, metric, study.direction)}"
        for other in study.quantities[1:]:
            if other in best.values and other in following.values:
                both = f"{best.values[other]} against {following.values[other]}"
                yield f"{short(other).capitalize()}: {both}. {_difference(study, best, following, other)}"


def _has(cell: Cell, metric: str) -> str:
    return f"{cell.label} has {short(metric)} {cell.values[metric]} (n={cell.n})"


def _difference(study: SweepResult, one: Cell, other: Cell, metric: str, direction: str | None = None) -> str:
    """The paired difference and its decision: better where a direction is given, else more or less."""
    gap, n = paired(values_of(one, metric), values_of(other, metric), metric)
    if n == 0:
        return f"{one.label} and {other.label} have no finished seed in common: undecided."
    no_spread = gap.high == inf
    if study.sequential:
        gap = paired_interval(one, other, metric, study.sequential, comb(len(study.cells), 2))
    seeds = f"{n} shared seed{'s' if n > 1 else ''}"
    found = f"Paired difference over {seeds}: {gap}"
    if study.sequential and metric == study.metric and study.sequential.equal(gap):
        return f"{found}: equal within {study.sequential.equal_within:g}."
    if no_spread:
        return f"{found}. {_no_spread(n)}"
    if gap.low <= 0 <= gap.high:
        return f"{found}: undecided, it may be chance."
    if direction is None:
        return f"{found}: {one.label} has {'more' if gap.value > 0 else 'less'}."
    if (gap.value > 0) == (direction == "max"):
        return f"{found}: {one.label} is better."
    return f"{found}: {other.label} is better over them; {one.label} is first only by the mean of all its seeds."


def _no_spread(n: int) -> str:
    """Why a difference without an interval is undecided."""
    if n == 1:
        return "One seed cannot separate it from chance: undecided."
    return "It is the same in all seeds, so the spread between seeds is unknown: undecided."


def _decided(study: SweepResult) -> Iterable[str]:
    """What a sweep with added seeds has decided, and after how many of its jobs."""
    rule, metric = study.sequential, study.metric
    if rule is None or metric is None or len(study.cells) < 2:
        return
    found = decide(study.cells, metric, study.direction, rule)
    state = "Decided" if found.has_answer(study.cells) else "Undecided"
    done, most = sum(cell.n for cell in study.cells), len(study.cells) * (rule.max_seeds or 0)
    facts = [f"{other} is beaten by {one}" for other, one in found.beaten.items()]
    facts += [f"{one} and {other} are open" for one, other in found.undecided]
    equal = [cell.label for cell in study.cells if cell.label not in found.beaten]
    if len(equal) > 1 and not found.undecided:
        facts.append(f"{' and '.join(equal)} differ by less than {rule.equal_within:g}")
    yield f"{state} after {done} of at most {most} jobs, wrong with a probability of at most {rule.error:.0%}: " + (
        f"{'; '.join(facts)}."
    )


def _range(study: SweepResult) -> Iterable[str]:
    """The change from the smallest to the largest value of a numeric key, for three settings or more."""
    key = numeric_key(study)
    measured = sorted(study.ranked, key=lambda cell: number(cell.settings.get(key)) or 0.0) if key else []
    if len(measured) < 3 or len(study.settings) > 1:
        return
    first, last = measured[0], measured[-1]
    found = []
    for metric in study.quantities:
        gap, n = paired(values_of(last, metric), values_of(first, metric), metric)
        if n:
            found.append(f"{short(metric)} {'+' if gap.value > 0 else ''}{gap}")
    if found:
        yield f"From {first.label} to {last.label}: {', '.join(found)}."


def _against_untrained(study: SweepResult) -> Iterable[str]:
    """The best setting against the untrained model, over its seeds."""
    metric, best = study.metric, next(iter(study.ranked), None)
    if metric is None or best is None:
        return
    start = {seed: value for (name, seed), value in before(best).items() if name == metric}
    gap, n = paired(values_of(best, metric), start, metric)
    if n == 0:
        return
    gains = gap.value > 0 if study.direction == "max" else gap.value < 0
    around = mean_interval(list(start.values()), *bounds(metric))
    found = f"Untrained: {short(metric)} {around}; {best.label} changes it by {gap}"
    if gap.high == inf:
        yield f"{found}. {_no_spread(n)}"
    elif gap.low <= 0 <= gap.high:
        yield f"{found}: undecided, it may be chance."
    elif not gains:
        yield f"{found}: no setting is better than the untrained model."
    else:
        yield f"{found}."


def _collapsed(study: SweepResult) -> Iterable[str]:
    """The settings whose policies collapsed, with the first case of each."""
    for cell in study.cells:
        jobs: tuple[JobResult, ...] = cell.collapsed
        if jobs:
            share = "" if cell.n == 1 else f" in {len(jobs)} of {cell.n} jobs"
            useless = f"Its {_metric(study)} does not measure useful text."
            yield f"{cell.label} collapsed{share}: {jobs[0].collapse}. {useless}"


def _metric(study: SweepResult) -> str:
    return short(study.metric) if study.metric else "result"
