"""The page of a sweep: the question, the table that answers it, its picture, how the settings got there, the jobs."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from postrain.formatting import duration, short
from postrain.report.page import PAGE, RESPONSES, estimate, link, write_json, write_page
from postrain.report.page import Cell as Shown
from postrain.report.pictures import color, write_png
from postrain.report.run_data import Sample, read_samples, state_of
from postrain.report.samples import SHOWN, last, responses, side_by_side
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
    folder = output or path
    study = read_study(path)
    drawn, groups = frontier(study), ends(study)
    page = write_page(
        folder,
        "study.html",
        {
            "study": study,
            "state": state_of(Status(path / "status.json").current()),
            "facts": facts(study),
            "answer": verdict(study),
            "about": ABOUT,
            "table": table(study),
            "frontier": drawn.picture() if drawn else None,
            "curves": study_curves(study),
            "legend": [(color(index), cell.label, "") for index, cell in enumerate(study.cells)],
            "shown": side_by_side(groups)[:SHOWN] if len(groups) > 1 else [],
            "jobs": [(job, _link(job, folder), duration(job.seconds)) for job in study.jobs],
            "failed": [job for job in study.failed if job.state == "failed"],
            "again": command(study.words),
            "resume": command(study.words, f"resume={path}"),
            "path": path.resolve(),
        },
    )
    if drawn:
        write_png(folder / "frontier.png", study.name, [(drawn.title, drawn.draw)])
    if groups:
        write_json(folder / RESPONSES, responses(groups))
    return page


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


def table(study: SweepResult) -> tuple[list[str], list[tuple[str, list[Shown]]]]:
    """A row for each setting, after the untrained model: means over seeds with their intervals."""
    names, best = study.shown(), study.best
    own, notes = study.metric is None, any(map(note, study.cells))
    rows = []
    for cell in (*study.untrained, *study.cells):
        cells = [Shown(result(cell))] if own else []
        for name in names:
            found, marked = cell.values.get(name), cell is best and name == study.metric
            cells.append(estimate(found.value, found.low, found.high, cell.n, best=marked) if found else Shown("–"))
        cells += [Shown(note(cell))] if notes else []
        ended = [Shown(finished(cell)), Shown(duration(cell.seconds))] if cell.jobs else [Shown("–"), Shown("–")]
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


def _link(job: JobResult, folder: Path) -> dict[str, Any]:
    """The ways to what a job has left."""
    named = {"report": job.folder / PAGE, "log": job.folder / "log.txt"}
    return {name: link(path, folder) for name, path in named.items() if path.is_file()}
