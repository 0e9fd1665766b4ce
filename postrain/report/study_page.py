"""The page of a sweep: the question, the table that answers it, its picture, how the settings got there, the jobs."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from postrain.formatting import duration, short
from postrain.report import blocks
from postrain.report.folders import state_of
from postrain.report.page import PAGE, RESPONSES, Page, link, section, write_json, write_page
from postrain.report.pictures import color, write_png
from postrain.report.samples import SHOWN, Sample, last, read_samples, responses, side_by_side
from postrain.report.study import SweepResult, read_study
from postrain.report.study_cells import Cell, JobResult
from postrain.report.study_pictures import frontier, study_curves
from postrain.report.study_table import ABOUT, finished, note, result
from postrain.report.verdict import verdict
from postrain.runs.status import Status


def write_study(path: Path, output: Path | None = None) -> Path:
    """Writes report.html, frontier.png and sample_responses.json of a sweep, finished or not.

    They go into its folder or into `output`. Raises ConfigError where they cannot be written, or there is no sweep.
    """
    folder, study = output or path, read_study(path)
    drawn, groups, ways = frontier(study), ends(study), study_curves(study)
    direction = "more" if study.direction == "max" else "less"
    decides = f" {short(study.metric)} decides, {direction} is better." if study.metric else ""
    sections = (
        section(
            "The answer",
            *map(blocks.Text, verdict(study)),
            blocks.note(_unfinished(study), tone="warn"),
            blocks.Table(*table(study), about=ABOUT + decides),
            blocks.Pictures([drawn] if drawn else [], large=True),
        ),
        section(
            "How they got there",
            blocks.about("Thick line: mean over seeds. Thin lines: each seed. Horizontal axis: updates."),
            blocks.Legend([(color(index), cell.label, "") for index, cell in enumerate(study.cells)]),
            blocks.Pictures(ways, large=True),
        )
        if ways
        else None,
        section(
            "The same prompts",
            blocks.about("The last evaluation of one job of each setting, the first prompts of the held-out data."),
            blocks.Samples(side_by_side(groups)[:SHOWN] if len(groups) > 1 else []),
        ),
        section(
            "Jobs",
            blocks.Table(
                ("job", "state", "time", "reason"),
                [_row(job, folder) for job in study.jobs],
                words=("state", "reason"),
            ),
        ),
        section(
            "How to go on, or make it again",
            blocks.about("Jobs that are done are skipped, failed ones tried again:"),
            blocks.Code(command(study.words, f"resume={path}")),
            blocks.about("Everything anew:"),
            blocks.Code(command(study.words)),
            blocks.Text(str(path.resolve()), "path muted"),
        ),
    )
    failed = [job for job in study.failed if job.state == "failed"]
    header = (
        blocks.Text(study.question, "question"),
        blocks.Facts(facts(study)),
        *(blocks.note(job.reason or " ", f"{job.label} failed.") for job in failed),
    )
    heading = blocks.line(study.name, blocks.badge(state_of(Status(path / "status.json").current())))
    page = write_page(folder, Page("sweep", study.name, heading, header, sections, study.missing))
    if drawn:
        write_png(folder / "frontier.png", study.name, [(drawn.title, drawn.draw)])
    if groups:
        write_json(folder / RESPONSES, responses(groups))
    return page


def _unfinished(study: SweepResult) -> str:
    if not study.jobs:
        return "No job is known: there is nothing to compare."
    return "" if any(cell.n for cell in study.cells) else "No job has finished: there is nothing to compare yet."


def _row(job: JobResult, folder: Path) -> tuple[str, list[blocks.Cell]]:
    """Its state, with the ways to what it has left, its time and why it ended."""
    named = {"report": job.folder / PAGE, "log": job.folder / "log.txt"}
    ways = [blocks.anchor(name, link(path, folder)) for name, path in named.items() if path.is_file()]
    state = blocks.Cell(blocks.line(blocks.badge(job.state), *ways), css="state")
    cells = [state, blocks.Cell(duration(job.seconds)), blocks.Cell(job.reason, css="words")]
    return f"{job.number} {job.label}", cells


def facts(study: SweepResult) -> list[tuple[str, str]]:
    """The line under the title."""
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
    names, best = study.shown(), study.best
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
        ended = (
            [blocks.Cell(finished(cell)), blocks.Cell(duration(cell.seconds))]
            if cell.jobs
            else [blocks.Cell("–"), blocks.Cell("–")]
        )
        rows.append((cell.label, [*cells, *ended]))
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


def command(words: Sequence[str], *more: str) -> str:
    """What to type; lists of values without a file need -m."""
    file = any(word.startswith("sweep=") for word in words)
    return shlex.join(["python", "train.py", *([] if file else ["-m"]), *words, *more])
