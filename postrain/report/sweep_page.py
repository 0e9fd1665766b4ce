"""The page of a sweep: the question, the table that answers it, its figure, learning curves, samples and jobs.

Figures join the settings of a numeric key in its order; other varied keys make separate lines. Without a numeric key
there are bars.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from postrain.config.override_text import format_override
from postrain.config.paths import command as start
from postrain.config.paths import shell_line
from postrain.evaluation.estimate import Interval
from postrain.formatting import duration, short
from postrain.jsonl import number
from postrain.report import blocks
from postrain.report.charts import DataPoint, Line, bars, curves, points, spans_decades
from postrain.report.claims import claims_of_jobs, verdicts_table
from postrain.report.folders import curves as curves_of
from postrain.report.folders import read_metrics, state_of
from postrain.report.page import PAGE, RELOAD, RESPONSES, Page, link, resumption, section, write_page
from postrain.report.palette import DASHES, UNTRAINED, Style, color
from postrain.report.panels import axis_of, label_of, title_of
from postrain.report.pictures import LARGE, Entry, Picture, Sheet
from postrain.report.samples import MOST_PROMPTS, Sample, last, read_samples, responses, side_by_side
from postrain.report.sweep_cells import Cell, JobResult
from postrain.report.sweep_results import SweepResult, numeric_key, read_sweep
from postrain.report.sweep_summary import ABOUT, finished, note, result, sentences
from postrain.report.values import Curve
from postrain.runs.status import Status

MOST_CURVES = 4
JOBS = ("job", "state", "time", "reason")
MEANS = "mean over seeds with 95 % intervals"


def write_sweep(path: Path, output: Path | None = None, formats: Sequence[str] = ()) -> Path:
    """Writes report.html, frontier.png and sample_responses.json of a sweep, finished or not.

    They go into its folder or into `output`. Raises ConfigError if they cannot be written, or if `path` is not a sweep.
    """
    folder, study = output or path, read_sweep(path)
    claims = claims_of_jobs(study.jobs)
    drawn, groups = None if claims else frontier(study), ends(study)
    direction = "higher" if study.direction == "max" else "lower"
    decides = f" The deciding metric is {short(study.metric)}, {direction} is better." if study.metric else ""
    found = verdicts_table(claims, folder) if claims else blocks.Table(*table(study), about=ABOUT + decides)
    sections = (
        section(
            "The answer",
            # The table of claims has the reasons.
            *map(blocks.Text, sentences(study)[: 1 if claims else None]),
            blocks.note(_unfinished(study), tone="warn"),
            found,
            blocks.Pictures([drawn] if drawn else [], large=True),
        ),
        section(
            "Learning curves",
            blocks.about("Thick line: mean over seeds. Thin lines: single seeds."),
            blocks.Legend([Line(cell.label, ([], []), _style(index)).entry for index, cell in enumerate(study.cells)]),
            blocks.Pictures(sweep_curves(study), large=True),
        ),
        section(
            "The same prompts",
            blocks.about("The last evaluation of one job of each setting, the first prompts of the held-out data."),
            blocks.Samples(side_by_side(groups)[:MOST_PROMPTS] if len(groups) > 1 else []),
        ),
        section(
            "Jobs",
            blocks.Table(JOBS, [_row(job, folder) for job in study.jobs], words=("state", "reason")),
        ),
        resumption(
            "finished jobs are skipped, failed ones are run again",
            command(study.overrides, format_override("resume", str(path))),
            command(study.overrides),
            path.resolve(),
        ),
    )
    failed = [job for job in study.failed if job.state == "failed"]
    header = (
        blocks.Text(study.question, "question"),
        blocks.Facts(facts(study)),
        *(blocks.note(job.reason or " ", f"{job.label} failed.") for job in failed),
    )
    state = state_of(Status(path / "status.json").current())
    page = Page(
        kind="sweep",
        title=study.name,
        heading=blocks.line(study.name, blocks.badge(state)),
        header=header,
        sections=sections,
        missing=study.missing,
        sheets=[Sheet("frontier", study.name, [(drawn.title, drawn.draw)])] if drawn else [],
        table=found,
        reload=RELOAD if state == "running" else 0,
        files={RESPONSES: responses(groups)} if groups else {},
    )
    return write_page(folder, page, formats)


def _unfinished(study: SweepResult) -> str:
    if not study.jobs:
        return "The sweep has no jobs, so there is nothing to compare."
    return "" if any(cell.n for cell in study.cells) else "No job has finished yet, so there is nothing to compare."


def _row(job: JobResult, folder: Path) -> tuple[str, list[blocks.Cell]]:
    """A job: its state with links to report and log, its time, and why it ended."""
    named = {"report": job.folder / PAGE, "log": job.folder / "log.txt"}
    anchors = [blocks.anchor(name, link(path, folder)) for name, path in named.items() if path.is_file()]
    state = blocks.Cell(blocks.line(blocks.badge(job.state), *anchors), css="state")
    cells = [state, blocks.Cell(duration(job.seconds)), blocks.Cell(job.reason, css="words")]
    return f"{job.number} {job.label}", cells


def facts(study: SweepResult) -> list[tuple[str, str]]:
    """The line below the title."""
    done = sum(job.state == "done" for job in study.jobs)
    seeds = len({job.seed for job in study.jobs})
    found = [("jobs done", f"{done} of {len(study.jobs)}"), ("settings", str(len(study.cells)))]
    found += [("seeds", str(seeds))] if seeds > 1 else []
    return [*found, ("time of all jobs", duration(sum(job.seconds for job in study.jobs)))]


def worst(study: SweepResult) -> Cell | None:
    """The setting with the worst mean."""
    return next(reversed(study.ranked), None)


def table(study: SweepResult) -> tuple[list[str], list[tuple[str, list[blocks.Cell]]]]:
    """A row for each setting, after the untrained model: means over seeds with their intervals."""
    names, best = study.measured_columns(), study.best
    own, notes = study.metric is None, any(map(note, study.cells))
    rows = []
    for cell in (*study.untrained, *study.cells):
        cells = [blocks.Cell(result(cell))] if own else []
        for name in names:
            found, marked = cell.values.get(name), cell is best and name == study.metric
            cells.append(
                blocks.estimate(found.value, found.low, found.high, cell.n, best=marked) if found else blocks.Cell("–")
            )
        cells += [blocks.Cell(note(cell))] if notes else []
        ended = (finished(cell), duration(cell.seconds)) if cell.jobs else ("–", "–")
        rows.append((cell.label, [*cells, *map(blocks.Cell, ended)]))
    columns = ["setting", *(["result"] if own else []), *map(short, names), *(["note"] if notes else [])]
    return [*columns, "jobs done", "time"], rows


def ends(study: SweepResult) -> list[tuple[str, list[Sample]]]:
    """The last samples of a finished job of the best and the worst setting; of the first and the last without them."""
    pair: Sequence[tuple[str, Cell | None]] = (("best", study.best), ("worst", worst(study)))
    if study.best is None:
        pair = (("first", study.cells[0]), ("last", study.cells[-1])) if len(study.cells) > 1 else ()
    found = []
    for word, cell in pair:
        done = [job for job in cell.jobs if job.state == "done"] if cell else []
        samples = last(read_samples(done[0].folder)) if done else []
        found += [(f"{word}: {done[0].label}", samples)] if samples else []
    return found


def command(overrides: Sequence[str], *more: str) -> str:
    """The command line; value lists without a file need -m."""
    file = any(word.startswith("sweep=") for word in overrides)
    return shell_line([*start("train").split(), *([] if file else ["-m"]), *overrides, *more])


def frontier(study: SweepResult) -> Picture | None:
    """The two metrics of the sweep's plot against each other, else the deciding metric against the varied key."""
    if study.x and study.y and any({study.x, study.y} <= cell.values.keys() for cell in study.cells):
        return _against(study, study.x, study.y)
    metric = study.y or study.metric
    if metric is None or not any(metric in cell.values for cell in study.cells):
        return None
    along = numeric_key(study)
    return _over(study, metric, along) if along else _bars(study, metric)


def lines(study: SweepResult, along: str | None) -> list[tuple[str, list[Cell]]]:
    """The settings in lines, one for each combination of the other varied keys, in the order of the key `along`."""
    if along is None:
        return [("", list(study.cells))]
    found: dict[str, list[Cell]] = {}
    for cell in sorted(study.cells, key=lambda cell: _value(cell, along)):
        rest = (f"{key.rpartition('.')[2]}={value}" for key, value in cell.settings.items() if key != along)
        found.setdefault(" ".join(rest), []).append(cell)
    return list(found.items())


def _value(cell: Cell, key: str) -> float:
    return number(cell.settings.get(key)) or 0.0


def _against(study: SweepResult, x: str, y: str) -> Picture:
    along = numeric_key(study)
    series = []
    for index, (name, cells) in enumerate(lines(study, along)):
        present = [cell for cell in cells if {x, y} <= cell.values.keys()]
        data_points = [_point(cell.values[x], cell.values[y], _label(cell, along)) for cell in present]
        series.append((name, index, data_points))
    untrained = [cell for cell in study.untrained if {x, y} <= cell.values.keys()]
    series += [("", UNTRAINED, [_point(cell.values[x], cell.values[y], cell.label)]) for cell in untrained]
    draw = points(series, x=axis_of(x), y=axis_of(y), joined=along is not None)
    about = "each point a setting, and the untrained model; mean over seeds with 95 % intervals"
    return Picture(f"{short(y)} against {short(x)}".capitalize(), about, draw, _legend(series), LARGE)


def _point(x: Interval, y: Interval, label: str) -> DataPoint:
    return DataPoint(x.value, y.value, (x.low, x.high), (y.low, y.high), label)


def _over(study: SweepResult, metric: str, along: str) -> Picture:
    series = []
    for index, (name, cells) in enumerate(lines(study, along)):
        found = [(_value(cell, along), cell.values[metric]) for cell in cells if metric in cell.values]
        series.append((name, index, [DataPoint(x, y.value, None, (y.low, y.high)) for x, y in found]))
    decades = spans_decades([point.x for _, _, data_points in series for point in data_points])
    levels = [(cell.label, cell.values[metric].value) for cell in study.untrained if metric in cell.values]
    draw = points(series, x=along.rpartition(".")[2], y=axis_of(metric), log_x=decades, levels=levels)
    title = f"{short(metric)} against {along.rpartition('.')[2]}".capitalize()
    return Picture(title, MEANS, draw, _legend(series), LARGE)


def _bars(study: SweepResult, metric: str) -> Picture:
    present = [cell for cell in (*study.untrained, *study.cells) if metric in cell.values]
    numbers = (UNTRAINED if cell in study.untrained else study.cells.index(cell) for cell in present)
    rows = [
        (_label(cell, None), _bar(cell.values[metric]), number) for cell, number in zip(present, numbers, strict=True)
    ]
    return Picture(short(metric).capitalize(), MEANS, bars(rows), size=LARGE)


def _bar(found: Interval) -> DataPoint:
    return DataPoint(found.value, 0, (found.low, found.high))


def _label(cell: Cell, along: str | None) -> str:
    """The value of the varied key, else all values of the setting."""
    if along is not None:
        return str(cell.settings.get(along))
    return " ".join(map(str, cell.settings.values())) or cell.label


def _legend(series: Sequence[tuple[str, int, Any]]) -> tuple[Entry, ...]:
    return tuple(Entry(color(index), name) for name, index, _ in series if name)


def sweep_curves(study: SweepResult) -> list[Picture]:
    """Learning curves of the sweep's metrics: the mean over seeds of each setting, and single seeds as thin lines."""
    wanted = study.measured_columns()[:MOST_CURVES]
    curves_of_cells = [
        [_metrics(job.folder) for job in cell.jobs if job.state != "not started"] for cell in study.cells
    ]
    found = []
    for metric in wanted:
        drawn: list[Line] = []
        for index, (cell, jobs) in enumerate(zip(study.cells, curves_of_cells, strict=True)):
            seeds = [job[metric] for job in jobs if metric in job]
            drawn += [Line("", seed, _style(index), thin=True) for seed in seeds] if len(seeds) > 1 else []
            drawn += [Line(cell.label, mean_curve(seeds), _style(index), measured=True)] if seeds else []
        if drawn:
            last = max(line.curve[0][-1] for line in drawn)
            found.append(Picture(*title_of(metric), curves(drawn, last, label_of(metric)), size=LARGE))
    return found


def _style(index: int) -> Style:
    return Style(index, index % len(DASHES))


def mean_curve(seeds: Sequence[Curve]) -> Curve:
    """The mean over seeds at their common updates; the longest curve where they have none in common."""
    known = [dict(zip(*seed, strict=True)) for seed in seeds]
    shared = sorted(set.intersection(*(set(one) for one in known)))
    if not shared:
        return max(seeds, key=lambda seed: len(seed[0]))
    return shared, [fmean(one[update] for one in known) for update in shared]


def _metrics(folder: Path) -> dict[str, Curve]:
    return curves_of(read_metrics(folder)[0])
