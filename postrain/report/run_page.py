"""The page of one run: what it looks like is said by templates/run.html and style.css."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from postrain.formatting import figure, short
from postrain.jsonl import number
from postrain.report.charts import curves, histogram, lines_of
from postrain.report.efficiency import MOST_SECONDS, efficiency, forgetting, took
from postrain.report.page import RESPONSES, STATS, Picture, flat, picture, write_json, write_page
from postrain.report.panels import Panel, arrange, headlines, totals_first
from postrain.report.pictures import AFTER, BEFORE, color, css, write_png
from postrain.report.run_data import RunData, Sample, read_run
from postrain.report.samples import SHOWN, moments, responses, side_by_side
from postrain.report.stats import run_stats

LEAST_FOR_A_HISTOGRAM = 12
MOST_HISTOGRAMS = 6
PNG_PANELS = 9
LENGTHS = "words of a completion"


def write_run(path: Path, output: Path | None = None) -> Path:
    """Writes report.html, training_curves.png, response_lengths.png, evaluation_stats.json and sample_responses.json.

    They go into the run's folder or into `output`. Raises ConfigError where they cannot be written.
    """
    run, folder = read_run(path), output or path.resolve()
    panels, constant = arrange(run.metrics)
    groups = moments(run.samples)
    page = write_page(
        folder,
        "run.html",
        {
            "run": run,
            "facts": facts(run),
            "headlines": headlines(run.metrics),
            "curves": [_curve(panel, run) for panel in panels if panel.primary],
            "more_curves": [_curve(panel, run) for panel in panels if not panel.primary],
            "constant": [(name, run.metrics[name][1][-1]) for name in constant],
            "shown": side_by_side(groups)[:SHOWN],
            "sampled": sorted({sample.update for sample in run.samples}),
            "histograms": _histograms(groups),
            "forgetting": forgetting(run),
            "efficiency": efficiency(run),
            "masks": run.masks(),
            "tables": tables(run.manifest),
            "data": flat({name: value for name, value in run.data.items() if name != "shown"}),
        },
    )
    title = f"{run.method} on {run.model}"
    if panels:
        named = [(panel.title, curves(lines_of(panel, run.metrics), run.updates)) for panel in panels[:PNG_PANELS]]
        write_png(folder / "training_curves.png", title, named)
    if lengths := _of_lengths(groups):
        write_png(folder / "response_lengths.png", f"{title}: {LENGTHS}", [("", histogram(lengths))])
    if groups:
        write_json(folder / STATS, run_stats(run, groups))
        write_json(folder / RESPONSES, responses(groups))
    return page


def facts(run: RunData) -> list[tuple[str, str]]:
    """The line under the title."""
    started = number(run.status.get("started"))
    found = [("updates", str(run.updates)), ("took", took(run))]
    if started is not None and 0 < started < MOST_SECONDS:
        found.append(("started", time.strftime("%Y-%m-%d %H:%M", time.localtime(started))))
    found += [("data", value) for name, value in flat(run.data) if name in ("source", "name")][:1]
    git = run.manifest.get("git")
    if isinstance(git, dict):
        found.append(("code", str(git.get("commit", ""))[:10] + (" + changes" if git.get("dirty") else "")))
    return [(name, value) for name, value in found if value]


def _curve(panel: Panel, run: RunData) -> Picture:
    legend = [
        (color(index), short(name), figure(run.metrics[name][1][-1]) if len(panel.names) == 1 else "")
        for index, name in enumerate(panel.names)
    ]
    return picture(panel.title, panel.about, curves(lines_of(panel, run.metrics), run.updates), legend)


def _histograms(groups: Sequence[tuple[str, Sequence[Sample]]]) -> list[Picture]:
    """Lengths and scores of all samples of the first and the last evaluation."""
    if len(groups) < 2:
        return []
    found = {"words": _of_lengths(groups)}
    names = dict.fromkeys(name for _, samples in groups for sample in samples for name in sample.scores)
    for name in sorted(names, key=totals_first):
        found[short(name)] = _enough(
            [(tag, [s.scores[name] for s in samples if name in s.scores]) for tag, samples in groups]
        )
    shown = [(name, values) for name, values in found.items() if values]
    return [_histogram(name, values) for name, values in shown[:MOST_HISTOGRAMS]]


Group = tuple[str, str, Sequence[float]]


def _of_lengths(groups: Sequence[tuple[str, Sequence[Sample]]]) -> list[Group]:
    return _enough([(tag, [sample.length for sample in samples]) for tag, samples in groups])


def _enough(groups: Sequence[tuple[str, Sequence[float]]]) -> list[Group]:
    """The groups with their colours; none where one of them is too small to have a shape."""
    if min((len(values) for _, values in groups), default=0) < LEAST_FOR_A_HISTOGRAM:
        return []
    return [(tag, BEFORE if tag == "before" else AFTER, values) for tag, values in groups]


def _histogram(name: str, groups: Sequence[Group]) -> Picture:
    legend = [(css(shade), f"{tag}, mean", figure(fmean(values))) for tag, shade, values in groups]
    about = f"{len(groups[-1][2])} completions"
    return picture(name.capitalize(), about, histogram(groups), legend, size=(3.6, 1.7))


def tables(manifest: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """What the manifest says about seeds, machine, code and packages."""
    found = [(name, flat(manifest.get(name))) for name in ("seeds", "hardware", "git", "versions")]
    return [(name, rows) for name, rows in found if rows]
