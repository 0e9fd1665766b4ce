"""A sweep as a table: the untrained model and the settings in rows, means with intervals in columns, the best one
marked; console and Markdown."""

from __future__ import annotations

from statistics import fmean

from rich.table import Table

from postrain.formatting import console_table, duration, figure, markdown_table, short
from postrain.report.study import SweepResult
from postrain.report.study_cells import Cell
from postrain.report.verdict import told, verdict

ABOUT = (
    "Means over seeds with 95 % intervals (Student's t, on the log scale for what is at least 0 and on the logit scale "
    "for shares); without one where there is one seed or all are equal. n counts finished jobs. untrained: the same "
    "jobs before their first update."
)


def result(cell: Cell) -> str:
    """What its jobs are judged by, before → after where both were measured; means over seeds."""
    done = [job for job in cell.jobs if job.metric in job.values]
    if not done:
        return ""
    name = str(done[0].metric)
    ends = [[*job.changes.get(name, (job.values[name],))] for job in done]
    means = [figure(fmean(values)) for values in zip(*ends, strict=False)]
    return f"{short(name)} {' → '.join(means)}"


def finished(cell: Cell) -> str:
    """How many of its jobs are done, and how many of the others hit their time limit."""
    if cell.n == len(cell.jobs):
        return f"{cell.n}"
    late = sum(job.timed_out for job in cell.jobs)
    return f"{cell.n} of {len(cell.jobs)}" + (f", {late} timed out" if late else "")


def note(cell: Cell) -> str:
    """That its policy collapsed."""
    lost = len(cell.collapsed)
    return "" if not lost else "collapsed" if lost == cell.n else f"collapsed in {lost} of {cell.n}"


def rows(study: SweepResult) -> tuple[list[str], list[tuple[bool, list[str]]]]:
    """Column names, and the cells of each row with whether it is the best."""
    names, best = study.shown(), study.best
    keys = [key.rpartition(".")[2] for key in study.settings]
    keys = keys if len(set(keys)) == len(keys) else [*study.settings]
    own = [] if study.metric else ["result"]
    notes = ["note"] if any(map(note, study.cells)) else []
    made = []
    for cell in study.untrained:
        means = [told(cell.values[name]) if name in cell.values else "" for name in names]
        made.append((False, [cell.label, *[""] * (len(keys) - 1), *means, *[""] * len(notes), f"{cell.n}", ""]))
    for cell in study.cells:
        chosen = [str(cell.settings.get(key, "")) for key in study.settings]
        means = [told(cell.values[name]) if name in cell.values else "" for name in names]
        ends = [result(cell)] if own else []
        said = [note(cell)] if notes else []
        row = [*(chosen or ["all"]), *ends, *means, *said, finished(cell), duration(cell.seconds)]
        made.append((cell is best, row))
    return [*(keys or ["jobs"]), *own, *map(short, names), *notes, "n", "time"], made


def table(study: SweepResult) -> Table:
    """For the console."""
    columns, lines = rows(study)
    return console_table(columns, [line for _, line in lines], best=[i for i, (best, _) in enumerate(lines) if best])


def markdown(study: SweepResult) -> str:
    """The same as Markdown, with the answer, the jobs that are not done and those that ended early."""
    columns, lines = rows(study)
    body = [[f"**{text}**" if best and text else text for text in line] for best, line in lines]
    text = f"# {study.name}\n\n{study.question}\n\n" if study.question else f"# {study.name}\n\n"
    text += markdown_table(columns, body)
    if study.cells:
        text += f"\n{ABOUT}\n"
    text += "".join(f"\n{line}\n" for line in verdict(study))
    listed = [job for job in study.jobs if job.state != "done" or job.reason]
    if listed:
        text += "\n" + markdown_table(
            ["job", "state", "reason"], [(job.label, job.state, job.reason) for job in listed]
        )
    return text
