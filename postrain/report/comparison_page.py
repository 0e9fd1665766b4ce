"""The comparison page of runs: final metrics, learning curves, reward against KL, samples, cost and settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from markupsafe import Markup

from postrain.config import renamed
from postrain.evaluation.estimate import Interval
from postrain.formatting import figure, short
from postrain.jsonl import is_list, leaves
from postrain.report import blocks
from postrain.report.changes import interval_after
from postrain.report.charts import Bars, DataPoint, Line, bar_picture, bars, curves, points
from postrain.report.folders import Run, read_run
from postrain.report.page import PAGE, RESPONSES, STATS, Page, link, section, write_page
from postrain.report.palette import DASHES, Style, color
from postrain.report.panels import HEADLINES, Ends, axis_of, before_and_after, best_of, label_of, panels, title_of
from postrain.report.pictures import LARGE, Entry, Picture, Sheet
from postrain.report.run_page import efficiency, run_stats
from postrain.report.samples import MOST_PROMPTS, Sample, last, responses, side_by_side
from postrain.report.values import is_held_out

MOST_COLUMNS, MOST_CURVES, MOST_BARS, MOST_LETTERS = 7, 12, 6, 40
# Keys that do not change what a run computes.
IGNORED_KEYS = ("name", "paths", "report", "logger", "debug", "resume", "allow_change", "stages")
MOST_KEYS = 3
KL_METRICS = ("eval/kl/exact", "kl/exact")
REWARD_METRICS = ("gold/total", "eval/reward/total", "eval/win_rate", "reward/total")
TABLE_ABOUT = (
    "After training; below it the value before, the 95 % interval over held-out items, and their number. The best is "
    "marked. eval and gold are held-out data. A value without an interval is not saved per item."
)
BARS_ABOUT = "After training. Whiskers: 95 % interval over held-out items, where the metric is saved per item."
FRONTIER_ABOUT = "Higher is better. Further left is closer to the reference policy: the same reward at a lower KL."
Rows = list[tuple[str, list[blocks.Cell]]]


@dataclass(frozen=True)
class Member:
    """One of the runs."""

    name: str
    number: int
    """Index that determines its colour and line style."""
    run: Run
    samples: Sequence[Sample]
    """Of its last evaluation."""

    @property
    def style(self) -> Style:
        return Style(self.number, self.number % len(DASHES))


def write_comparison_of_runs(paths: Sequence[Path], folder: Path, formats: Sequence[str] = ()) -> Path:
    """Writes report.html and its figures into a folder. Raises ConfigError where they cannot be written."""
    runs = [read_run(path) for path in paths]
    named = enumerate(zip(labels(runs), runs, strict=True))
    members = [Member(name, number, run, last(run.samples)) for number, (name, run) in named]
    metrics, notes = comparison_metrics(runs), warnings(members)
    measured, frontier = _measured(members, metrics), _frontier(members)
    groups = [(member.name, member.samples) for member in members if member.samples]
    legend = blocks.Legend([Entry(color(one.number), one.name) for one in members])
    curve_legend = blocks.Legend([Line(one.name, ([], []), one.style).entry for one in members])
    table = blocks.Table(*headline_table(members, metrics), about=TABLE_ABOUT)
    sections = (
        section(
            "Final metrics",
            blocks.Items([_member(one, folder) for one in members], "runs"),
            table,
            blocks.Pictures(
                [bar_picture(title_of(name)[0], rows, about=title_of(name)[1], named=False) for name, rows in measured],
                about=BARS_ABOUT,
            ),
        ),
        section("Learning curves", curve_legend, blocks.Pictures(_curves(members, metrics))),
        section("Reward against KL", blocks.about(FRONTIER_ABOUT), blocks.Pictures(frontier, large=True), legend),
        section(
            "The same prompts",
            blocks.about("Each run's last evaluation, the first prompts of the held-out data."),
            blocks.Samples(side_by_side(groups, least=2)[:MOST_PROMPTS]),
        ),
        section("Cost", blocks.Table(*efficiency_table(members))),
        section(
            "Different settings",
            blocks.Table(
                ("key", *(one.name for one in members)),
                [(key, [blocks.Cell(_cut(value)) for value in values]) for key, values in differing(runs).items()],
            ),
        ),
    )
    stats = [{**run_stats(one.run, [("sample", one.samples)])["models"][0], "name": one.name} for one in members]
    drawn = [(short(name), bars(rows, label=axis_of(name))) for name, rows in measured]
    page = Page(
        kind="comparison",
        title=f"{len(members)} runs compared",
        heading=blocks.line(f"{len(members)} runs", blocks.span("compared", "muted")),
        header=[blocks.note(text, tone="warn") for text in notes],
        sections=sections,
        missing=[f"{one.name}: {text}" for one in members for text in one.run.missing],
        sheets=(
            Sheet("model_comparison", "after training, with 95 % intervals", drawn),
            Sheet("frontier", "reward against KL", [("", one.draw) for one in frontier]),
        ),
        table=table,
        files={STATS: {"models": stats, "notes": notes}, RESPONSES: responses(groups)},
    )
    return write_page(folder, page, formats)


def _member(one: Member, folder: Path) -> Markup:
    name = blocks.anchor(one.name, link(one.run.path / PAGE, folder))
    name = Markup().join((blocks.dot(color(one.number)), name))
    return blocks.line(name, blocks.badge(one.run.state), blocks.span(one.run.path, "path muted"))


def _cut(value: str) -> str:
    """A setting, truncated after a whole word."""
    short_enough = len(value) <= MOST_LETTERS + 5
    return value if short_enough else value[: MOST_LETTERS - 3].rsplit(" ", 1)[0] + "..."


def comparison_metrics(runs: Sequence[Run]) -> list[str]:
    """The deciding metrics of the runs, then HEADLINES; held-out metrics replace those of training data."""
    own = [name for run in runs if isinstance(name := run.result.get("metric"), str)]
    found = [name for name in dict.fromkeys([*own, *HEADLINES]) if any(name in run.metrics for run in runs)]
    return [name for name in found if f"eval/{name}" not in found][:MOST_COLUMNS]


def warnings(members: Sequence[Member]) -> list[str]:
    """Reasons why the numbers may not be comparable."""
    found = []
    if len(fingerprints(members)) > 1:
        sources = {one.name: str(one.run.data.get("source", "unknown")) for one in members}
        each = "; ".join(f"{name}: {source}" for name, source in sources.items())
        why = each if len(set(sources.values())) > 1 else "one source, but other rows, another template or tokenizer"
        found.append(f"These runs used different data ({why}). Their held-out metrics are measured on different items.")
    if unknown := [one.name for one in members if not one.run.data.get("fingerprint")]:
        found.append(f"The training data of {', '.join(unknown)} is not known; the numbers may not be comparable.")
    if unfinished := [one.name for one in members if one.run.state != "done"]:
        text = "Their values are the last ones measured; a value without “from” is the only one."
        found.append(f"Not finished: {', '.join(unfinished)}. {text}")
    if empty := [one.name for one in members if not one.run.metrics]:
        found.append(f"Without metrics: {', '.join(empty)}.")
    return found


def fingerprints(members: Sequence[Member]) -> set[str]:
    """Fingerprints of the runs' data, where known."""
    return {str(known) for one in members if (known := one.run.data.get("fingerprint"))}


def headline_table(members: Sequence[Member], metrics: Sequence[str]) -> tuple[list[str], Rows]:
    """A row for each run, a column for each metric: its value at the end, under it the one before training.

    No value is marked as the best where the runs used different data.
    """
    alike = len(fingerprints(members)) < 2
    rows: dict[str, list[blocks.Cell]] = {one.name: [] for one in members}
    around = {(one.name, metric): interval_after(one.run, one.samples, metric) for one in members for metric in metrics}
    for metric in metrics:
        ends = {one.name: before_and_after(one.run.metrics, metric) for one in members if metric in one.run.metrics}
        best = best_of(metric, {name: after for name, (_, after) in ends.items()}) if alike else set()
        for name, cells in rows.items():
            both = ends.get(name)
            cells.append(_ends(both, around.get((name, metric)), name in best) if both else blocks.Cell("–"))
    return ["run", *map(short, metrics)], list(rows.items())


def _ends(both: Ends, around: tuple[Interval, int] | None, best: bool) -> blocks.Cell:
    before, after = both
    low, high, n = (around[0].low, around[0].high, around[1]) if around else (None, None, None)
    cell = blocks.estimate(after, low, high, n, best=best)
    earlier = "" if before is None else f"from {figure(before)}"
    return replace(cell, small=", ".join(filter(None, (earlier, cell.small))))


def efficiency_table(members: Sequence[Member]) -> tuple[list[str], Rows]:
    """A row for each run, a column for each kind of cost."""
    costs = {one.name: efficiency(one.run) for one in members}
    names = list(dict.fromkeys(name for cost in costs.values() for name in cost))
    return ["run", *names], [(who, [blocks.Cell(cost.get(name, "–")) for name in names]) for who, cost in costs.items()]


def _curves(members: Sequence[Member], metrics: Sequence[str]) -> list[Picture]:
    """A figure for each metric of at least two runs; held-out metrics replace those of training data."""
    usual = [name for panel in panels() if panel.primary for name in panel.names]
    counts = {name: sum(name in one.run.metrics for one in members) for name in (*metrics, *usual)}
    selected = [name for name, count in counts.items() if count > 1 and not counts.get(f"eval/{name}")]
    updates = max(one.run.updates for one in members)
    found = []
    for name in selected[:MOST_CURVES]:
        dots = is_held_out(name)
        present = [one for one in members if name in one.run.metrics]
        lines = [Line(one.name, one.run.metrics[name], one.style, measured=dots) for one in present]
        found.append(Picture(*title_of(name), curves(lines, updates, label_of(name))))
    return found


def _measured(members: Sequence[Member], metrics: Sequence[str]) -> list[tuple[str, Bars]]:
    """Bars of each headline metric, with an interval where it is a score of saved samples."""
    found = []
    for metric in metrics[:MOST_BARS]:
        rows = []
        for one in members:
            if (after := one.run.after(metric)) is not None:
                around = interval_after(one.run, one.samples, metric)
                ends = (around[0].low, around[0].high) if around else None
                rows.append((one.name, DataPoint(after, 0, ends), one.number))
        if len(rows) > 1:
            found.append((metric, rows))
    return found


def _frontier(members: Sequence[Member]) -> list[Picture]:
    """Reward or gold score against KL: for each run a path through its evaluations."""
    for x in KL_METRICS:
        for y in REWARD_METRICS:
            paths = [(one.name, one.number, _path(one, x, y)) for one in members]
            if series := [path for path in paths if path[2]]:
                draw = points(series, x=axis_of(x), y=axis_of(y))
                title = f"{short(y)} against {short(x)}".capitalize()
                return [
                    Picture(
                        title, "one dot per evaluation, joined in order; the last one is labelled", draw, size=LARGE
                    )
                ]
    return []


def _path(one: Member, x: str, y: str) -> list[DataPoint]:
    xs, ys = one.run.metrics.get(x), one.run.metrics.get(y)
    if xs is None or ys is None:
        return []
    present = dict(zip(*ys, strict=True))
    path = [DataPoint(kl, present[update]) for update, kl in zip(*xs, strict=True) if update in present]
    return [*path[:-1], *(replace(point, label=one.name) for point in path[-1:])]


def labels(runs: Sequence[Run]) -> list[str]:
    """A different name for each run: its method, and model and settings where those differ."""
    several_models = len({run.model for run in runs}) > 1
    names = [f"{run.method} on {run.model}" if several_models else run.method for run in runs]
    found = []
    for name, run in zip(names, runs, strict=True):
        alike = [other for known, other in zip(names, runs, strict=True) if known == name]
        found.append(" ".join([name, *(_distinguishing(run, alike) if len(alike) > 1 else ())]))
    doubled = [name for name in found if found.count(name) > 1]
    return [f"{name} {run.path.name}" if name in doubled else name for name, run in zip(found, runs, strict=True)]


def _distinguishing(run: Run, alike: Sequence[Run]) -> list[str]:
    """The first few settings that differ; of a component its class rather than all its keys."""
    unlike, values = differing(alike), flat_settings(run)
    kinds = dict.fromkeys(key.partition(".")[0] for key in unlike if key.endswith("._target_"))
    parts = [f"{group}={values.get(f'{group}._target_', 'none')}" for group in kinds]
    parts += [
        f"{key.rpartition('.')[2]}={values.get(key, '–')}" for key in unlike if key.partition(".")[0] not in kinds
    ]
    return parts[:MOST_KEYS]


def differing(runs: Sequence[Run]) -> dict[str, list[str]]:
    """The settings that differ between runs: by key, the value of each run; the seed comes last."""
    settings = [flat_settings(run) for run in runs]
    keys = dict.fromkeys(key for one in settings for key in one)
    rows = {key: [one.get(key, "–") for one in settings] for key in keys}
    unlike = {key: values for key, values in rows.items() if len(set(values)) > 1}
    return dict(sorted(unlike.items(), key=lambda item: (item[0] == "seed", item[0].endswith("_target_"))))


def flat_settings(run: Run) -> dict[str, str]:
    """The config as dotted keys and texts."""
    return {
        key: _kind(value) if key.endswith("_target_") and isinstance(value, str) else str(value)
        for key, value in leaves("", renamed.config(run.settings, quiet=True), is_leaf=is_list)
        if key.partition(".")[0] not in IGNORED_KEYS
    }


def _kind(target: str) -> str:
    """The class name of a component; none for NoAdapter, NoTracker."""
    name = target.rpartition(".")[2]
    return "none" if name[:2] == "No" and name[2:3].isupper() else name
