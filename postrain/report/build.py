"""Puts the page together: what is computed here, what it looks like is said by page.html and style.css."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from postrain.jsonl import atomic_write_text, number
from postrain.readable import duration, figure, short
from postrain.report.panels import Panel, arrange, headlines, totals_first
from postrain.report.pictures import color, curve_svg, histogram_svg, write_png
from postrain.report.run_data import RunData, Sample, read_run

SHOWN_SAMPLES = 8
LEAST_FOR_A_HISTOGRAM = 12
MOST_HISTOGRAMS = 6
PNG_PANELS = 9
MOST_SECONDS = 1e11
"""Later than any run: a damaged status file."""


@dataclass(frozen=True)
class Picture:
    """A curve or a histogram with its caption."""

    title: str
    about: str
    svg: Markup
    legend: list[tuple[str, str, str]]
    """CSS colour, name, and the last value or nothing."""


@dataclass(frozen=True)
class Pair:
    """One held-out prompt, and what the model wrote before and after."""

    row: int
    prompt: str
    before: Sample
    after: Sample
    changes: list[tuple[str, float | None, float | None]]
    """Name of a score, before, after."""


def write_report(path: Path) -> Path:
    """Write report.html and training_curves.png into the run folder; returns the page."""
    run = read_run(path)
    panels, constant = arrange(run.metrics)
    if panels:
        title = f"{run.method} on {run.model}"
        write_png(run.path / "training_curves.png", title, panels[:PNG_PANELS], run.metrics, run.updates)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"figure": figure, "short": short}
    page = environment.get_template("page.html").render(
        run=run,
        style=Markup((Path(__file__).parent / "style.css").read_text(encoding="utf-8")),
        facts=facts(run),
        headlines=headlines(run.metrics),
        curves=[_curve(panel, run) for panel in panels if panel.primary],
        more_curves=[_curve(panel, run) for panel in panels if not panel.primary],
        constant=[(name, run.metrics[name][1][-1]) for name in constant],
        pairs=pairs(run.samples)[:SHOWN_SAMPLES],
        sampled=sorted({sample.update for sample in run.samples}),
        histograms=_histograms(run.samples),
        tables=tables(run.manifest),
        data=flat(run.manifest.get("data")),
    )
    target = run.path / "report.html"
    atomic_write_text(target, page)
    return target


def facts(run: RunData) -> list[tuple[str, str]]:
    """The line under the title."""
    seconds = number(run.status.get("seconds")) or run.seconds
    started = number(run.status.get("started"))
    found = [("updates", str(run.updates)), ("took", duration(seconds) if 0 < seconds < MOST_SECONDS else "")]
    if started is not None and 0 < started < MOST_SECONDS:
        found.append(("started", time.strftime("%Y-%m-%d %H:%M", time.localtime(started))))
    data = flat(run.manifest.get("data"))
    names = ("source", "name")
    found += [("data", value) for name, value in data if name in names][:1]
    git = run.manifest.get("git")
    if isinstance(git, dict):
        found.append(("code", str(git.get("commit", ""))[:10] + (" + changes" if git.get("dirty") else "")))
    return [(name, value) for name, value in found if value]


def pairs(samples: Sequence[Sample]) -> list[Pair]:
    """The prompts that the first and the last evaluation share, in the order of the data, not of success."""
    updates = sorted({sample.update for sample in samples})
    if not updates:
        return []
    first = {(sample.row, sample.prompt): sample for sample in samples if sample.update == updates[0]}
    last = {(sample.row, sample.prompt): sample for sample in samples if sample.update == updates[-1]}
    found = []
    for key in [key for key in first if key in last]:
        before, after = first[key], last[key]
        names = sorted({**before.scores, **after.scores}, key=totals_first)
        changes = [(name, before.scores.get(name), after.scores.get(name)) for name in names]
        found.append(Pair(key[0], key[1], before, after, changes))
    return _without_repeated_gold(found)


def _without_repeated_gold(found: list[Pair]) -> list[Pair]:
    """Where the gold score itself is the reward, saying every number twice helps nobody."""
    rewards = [{name[7:]: rest for name, *rest in pair.changes if name.startswith("reward/")} for pair in found]
    gold = [{name[5:]: rest for name, *rest in pair.changes if name.startswith("gold/")} for pair in found]
    if rewards != gold:
        return found
    return [replace(p, changes=[change for change in p.changes if not change[0].startswith("gold/")]) for p in found]


def _curve(panel: Panel, run: RunData) -> Picture:
    legend = [
        (color(index), short(name), figure(run.metrics[name][1][-1]) if len(panel.names) == 1 else "")
        for index, name in enumerate(panel.names)
    ]
    return Picture(panel.title, panel.about, Markup(curve_svg(panel, run.metrics, run.updates)), legend)


def _histograms(samples: Sequence[Sample]) -> list[Picture]:
    """Scores and lengths of all samples of the first and the last evaluation."""
    updates = sorted({sample.update for sample in samples})
    if len(updates) < 2:
        return []
    first = [sample for sample in samples if sample.update == updates[0]]
    last = [sample for sample in samples if sample.update == updates[-1]]
    names = dict.fromkeys(name for sample in (*first, *last) for name in sample.scores)
    measures: dict[str, tuple[list[float], list[float]]] = {
        "words": ([float(len(s.completion.split())) for s in first], [float(len(s.completion.split())) for s in last])
    }
    for name in sorted(names, key=totals_first):
        before, after = ([s.scores[name] for s in group if name in s.scores] for group in (first, last))
        measures[short(name)] = before, after
    enough = {name: both for name, both in measures.items() if min(map(len, both)) >= LEAST_FOR_A_HISTOGRAM}
    return [_histogram(name, *both) for name, both in list(enough.items())[:MOST_HISTOGRAMS]]


def _histogram(name: str, before: list[float], after: list[float]) -> Picture:
    means = [figure(fmean(values)) for values in (before, after)]
    legend = [("var(--before)", "before, mean", means[0]), ("var(--after)", "after, mean", means[1])]
    svg = Markup(histogram_svg(name, before, after))
    return Picture(name.capitalize(), f"{len(after)} completions", svg, legend)


def tables(manifest: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """What the manifest says about seeds, machine, code and packages."""
    found = [(name, flat(manifest.get(name))) for name in ("seeds", "hardware", "git", "versions")]
    return [(name, rows) for name, rows in found if rows]


def flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A nested record as name and text; lists of plain values stay together."""
    if isinstance(value, dict):
        rows = ((f"{prefix} {name}".strip().replace("_", " "), item) for name, item in value.items())
        return [row for name, item in rows for row in flat(item, name)]
    if value is None or value in ("", [], {}):
        return []
    if isinstance(value, list):
        return [(prefix, ", ".join(map(_text, value)))]
    return [(prefix, _text(value))]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return figure(value) if not math.isfinite(value) or value != round(value) else f"{value:.0f}"
    return re.sub(r"\s+", " ", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
