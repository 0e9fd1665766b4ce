"""A sweep as a table: settings in rows, means with intervals in columns, the best one marked; console and Markdown."""

from __future__ import annotations

from statistics import fmean

from rich.table import Table

from postrain.evaluation.intervals import Interval
from postrain.readable import duration, figure, short
from postrain.report.study import Cell, Study


def said(value: Interval) -> str:
    """A mean with its interval, where there are several seeds."""
    if value.low == float("-inf"):
        return figure(value.value)
    return f"{figure(value.value)} [{figure(value.low)}, {figure(value.high)}]"


def result(cell: Cell) -> str:
    """What its jobs are judged by, before → after where both were measured; means over seeds."""
    done = [job for job in cell.jobs if job.metric in job.values]
    if not done:
        return ""
    name = str(done[0].metric)
    ends = [[*job.changes.get(name, (job.values[name],))] for job in done]
    told = [figure(fmean(values)) for values in zip(*ends, strict=False)]
    return f"{short(name)} {' → '.join(told)}"


def rows(study: Study) -> tuple[list[str], list[tuple[bool, list[str]]]]:
    """Column names, and the cells of each row with whether it is the best."""
    names, best = study.shown(), study.best
    keys = [key.rpartition(".")[2] for key in study.settings]
    keys = keys if len(set(keys)) == len(keys) else [*study.settings]
    own = [] if study.metric else ["result"]
    made = []
    for cell in study.cells:
        chosen = [str(cell.settings.get(key, "")) for key in study.settings]
        told = [said(cell.values[name]) if name in cell.values else "" for name in names]
        states = f"{cell.n}" if cell.n == len(cell.jobs) else f"{cell.n} of {len(cell.jobs)}"
        ends = [result(cell)] if own else []
        made.append((cell is best, [*(chosen or ["all"]), *ends, *told, states, duration(cell.seconds)]))
    return [*(keys or ["jobs"]), *own, *map(short, names), "n", "time"], made


def table(study: Study) -> Table:
    """For the console."""
    columns, lines = rows(study)
    made = Table(box=None, pad_edge=False)
    for column in columns:
        made.add_column(column)
    for best, line in lines:
        made.add_row(*line, style="bold green" if best else None)
    return made


def markdown(study: Study) -> str:
    """The same as Markdown, with the jobs that are not done and those that ended early."""
    columns, lines = rows(study)
    body = [[f"**{text}**" if best and text else text for text in line] for best, line in lines]
    text = f"# {study.name}\n\n{study.question}\n\n" if study.question else f"# {study.name}\n\n"
    for line in [columns, ["---"] * len(columns), *body]:
        text += f"| {' | '.join(_cell(item) for item in line)} |\n"
    if study.cells:
        text += "\nMeans over seeds with 95 % intervals (Student's t); n counts finished jobs.\n"
    listed = [job for job in study.jobs if job.state != "done" or job.reason]
    if listed:
        text += "\n| job | state | reason |\n| --- | --- | --- |\n"
        text += "".join(f"| {_cell(job.label)} | {job.state} | {_cell(job.reason)} |\n" for job in listed)
    return text


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
