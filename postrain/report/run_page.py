"""The page of one training run: verdict, learning curves, samples, cost, data and the command that reproduces it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from postrain.formatting import duration, figure, short
from postrain.jsonl import Record, number
from postrain.report import blocks
from postrain.report.changes import change_table, changes, interval_after, signed
from postrain.report.charts import Group, curves, distribution, histogram, lines_of
from postrain.report.folders import MOST_SECONDS, MaskedRow, Run, read_run
from postrain.report.forks import fork_section
from postrain.report.headline_cards import headline_section
from postrain.report.page import (
    RELOAD,
    RESPONSES,
    STATS,
    Page,
    Section,
    flat,
    machine,
    reproduction,
    section,
    write_page,
)
from postrain.report.palette import POLICY, REFERENCE
from postrain.report.panels import Panel, arrange, before_and_after, totals_first
from postrain.report.parts import part_names, part_panels, part_section, source_section, without_parts
from postrain.report.pictures import Picture, Sheet
from postrain.report.samples import MOST_PROMPTS, Sample, first_and_last, interval, responses, side_by_side
from postrain.report.values import is_held_out
from postrain.report.verdict import verdict

LEAST_FOR_A_HISTOGRAM = 12
MOST_HISTOGRAMS = 6
PNG_PANELS = 9
FORGETTING = "eval/forgetting/"
PEAKS = ("perf/peak_memory_gib", "perf/peak_gpu_gib")
AUDIT_TABLES = ("shown", "sources")
"""Parts of the data audit with sections of their own."""
LENGTHS = "words per completion"
MASKS = Markup(
    '<span class="mask loss">Marked</span> text is trained on, <span class="mask context">grey</span> text is context. '
    "Special tokens are written out."
)
STEP_LABELS = Markup(
    ' Steps with labels: <span class="mask positive_step">right</span>, <span class="mask negative_step">wrong</span>.'
)
STAND_IN = Markup(
    "<b>{} stood in for {}</b>, which was not available when the run started. No number on this page is of {}."
)


def write_run(path: Path, output: Path | None = None, formats: Sequence[str] = ()) -> Path:
    """Writes report.html, training_curves.png, response_lengths.png, evaluation_stats.json and sample_responses.json.

    They go into the run's folder or into `output`. Raises ConfigError where they cannot be written.
    """
    run, folder = read_run(path), output or path.resolve()
    parts = part_names(run)
    panels, constant = arrange(without_parts(run.metrics, parts))
    panels += part_panels(run, parts)
    groups, known = first_and_last(run.samples), changes(run)
    found = change_table(known)
    sections = (
        _verdict(run),
        headline_section(run, known),
        section("", blocks.details("All held-out metrics, before and after", found)),
        part_section(run, parts),
        _diagnostics(run.diagnostics),
        learning_curves(run, panels, constant),
        _samples(run, groups),
        section("Distributions", blocks.Pictures(_histograms(groups))),
        _forgetting(run),
        fork_section(run.path),
        section("Cost", blocks.Facts(list(efficiency(run).items()), "list")),
        _masks(run.masks()),
        source_section(run),
        section("Data audit", blocks.Facts(flat({k: v for k, v in run.data.items() if k not in AUDIT_TABLES}), "list")),
        section(
            "Reproduce this run",
            *reproduction(run.manifest, run.path),
            machine(run.manifest),
            blocks.details("config.yaml", blocks.code(run.config, "")),
        ),
    )
    heading = blocks.line(run.method, blocks.span("on", "muted"), run.model, blocks.badge(run.state))
    title, lengths, colors = f"{run.method} on {run.model}", _of_lengths(groups), {}
    panels = [panel for panel in panels if panel.primary][:PNG_PANELS]
    drawn = [(panel.title, curves(lines_of(panel, run.metrics, colors), run.updates, panel.label)) for panel in panels]
    words = [("", histogram(lengths, label=LENGTHS))] if lengths else []
    page = Page(
        kind="run",
        title=f"{run.method} · {run.model}",
        heading=heading,
        header=_header(run),
        sections=sections,
        missing=run.missing,
        sheets=(Sheet("training_curves", title, drawn), Sheet("response_lengths", f"{title}: {LENGTHS}", words)),
        table=found,
        reload=RELOAD if run.state == "running" else 0,
        files={STATS: run_stats(run, groups), RESPONSES: responses(groups)} if groups else {},
    )
    return write_page(folder, page, formats)


def _verdict(run: Run) -> Section | None:
    found = verdict(run)
    sentences = [blocks.Text(text) for text in (found.learned, found.trust, found.next)]
    return section("", blocks.Group((*sentences, blocks.code(found.command)), "card verdict"))


def _header(run: Run) -> list[blocks.Block | None]:
    other = run.manifest.get("stand_in_for")
    return [
        blocks.Facts(facts(run)),
        blocks.end_reason(run.status.get("reason")),
        blocks.note(str(run.result.get("stopped") or ""), "It ended early.", "warn"),
        blocks.Text(STAND_IN.format(run.model, other, other), "note warn") if other else None,
    ]


def facts(run: Run) -> list[tuple[str, str]]:
    """The line below the title."""
    started = number(run.status.get("started"))
    found = [("updates", str(run.updates)), ("took", run.took)]
    if started is not None and 0 < started < MOST_SECONDS:
        found.append(("started", time.strftime("%Y-%m-%d %H:%M", time.localtime(started))))
    found += [("data", value) for name, value in flat(run.data) if name in ("source", "name")][:1]
    git = run.manifest.get("git")
    if isinstance(git, dict):
        found.append(("code", str(git.get("commit", ""))[:10] + (" + changes" if git.get("dirty") else "")))
    return [(name, value) for name, value in found if value]


def _diagnostics(found: Sequence[Record]) -> Section | None:
    cards = []
    for one in found:
        update = blocks.span(f"update {one.get('update', '?')}", "muted")
        title = blocks.line(one.get("title", one.get("rule", "")), update)
        stops = " stops" if one.get("stops") else ""
        cards.append(blocks.card(title, blocks.Text(str(one["text"])), css=f"card explanation{stops}"))
    return section("Diagnostics", *cards)


def learning_curves(run: Run, panels: Sequence[Panel], constant: Sequence[str]) -> Section | None:
    """The section of all panels."""
    colors: dict[str, int] = {}
    pictures = [(panel.primary, _curve(panel, run, colors)) for panel in panels]
    more = [picture for primary, picture in pictures if not primary]
    constants = Markup(", ").join(blocks.line(name, blocks.bold(figure(run.after(name) or 0.0))) for name in constant)
    return section(
        "Learning curves",
        blocks.about("Thin line: every update. Thick line: smoothed. Dots: held-out evaluations."),
        blocks.Pictures([picture for primary, picture in pictures if primary]),
        blocks.details(f"{len(more)} more curves", blocks.Pictures(more)),
        blocks.about(Markup("Constant: {}.").format(constants)) if constant else None,
    )


def _curve(panel: Panel, run: Run, colors: dict[str, int]) -> Picture:
    lines = lines_of(panel, run.metrics, colors)
    legend = [
        line.entry._replace(name=short(line.name), value=figure(line.curve[1][-1]) if len(lines) == 1 else "")
        for line in lines
    ]
    return Picture(panel.title, panel.about, curves(lines, run.updates, panel.label), legend)


def _samples(run: Run, groups: Sequence[tuple[str, Sequence[Sample]]]) -> Section | None:
    updates = sorted({sample.update for sample in run.samples})
    which = f"Update {updates[0]} and update {updates[-1]}, the" if len(updates) > 1 else ""
    which = which or f"The run saved samples of update {updates[0] if updates else 0} only; the"
    return section(
        "Samples before and after training",
        blocks.about(f"{which} first prompts of the held-out data, not the best ones. All samples: samples.jsonl."),
        blocks.Samples(side_by_side(groups)[:MOST_PROMPTS], compare=True),
    )


def _histograms(groups: Sequence[tuple[str, Sequence[Sample]]]) -> list[Picture]:
    """Histograms of lengths and scores in the first and the last evaluation."""
    if len(groups) < 2:
        return []
    found = {"words": _of_lengths(groups)}
    names = dict.fromkeys(name for _, samples in groups for sample in samples for name in sample.scores)
    for name in sorted(names, key=totals_first):
        found[short(name)] = _enough(
            [(tag, [s.scores[name] for s in samples if name in s.scores]) for tag, samples in groups]
        )
    known = [(name, values) for name, values in found.items() if values]
    return [
        distribution(name.capitalize(), f"{len(values[-1][2])} completions", values)
        for name, values in known[:MOST_HISTOGRAMS]
    ]


def _of_lengths(groups: Sequence[tuple[str, Sequence[Sample]]]) -> list[Group]:
    return _enough([(tag, [sample.length for sample in samples]) for tag, samples in groups])


def _enough(groups: Sequence[tuple[str, Sequence[float]]]) -> list[Group]:
    """The groups with their colours; empty where one has fewer than LEAST_FOR_A_HISTOGRAM values."""
    if min((len(values) for _, values in groups), default=0) < LEAST_FOR_A_HISTOGRAM:
        return []
    return [(tag, REFERENCE if tag == "before" else POLICY, values) for tag, values in groups]


def _forgetting(run: Run) -> Section | None:
    rows = []
    for name in run.metrics:
        if name.startswith(FORGETTING):
            one, two = before_and_after(run.metrics, name)
            cells = ["–", figure(two), "–"] if one is None else [figure(one), figure(two), signed(two - one)]
            rows.append((short(name.removeprefix(FORGETTING)), [blocks.Cell(cell) for cell in cells]))
    return section(
        "Forgetting",
        blocks.about("Base text and facts that are not in the training data. No intervals: one number per evaluation."),
        blocks.Table(("measured", "before", "after", "change"), rows),
    )


def _masks(rows: Sequence[MaskedRow]) -> Section | None:
    cards = []
    for row in rows:
        text = Markup().join(blocks.span(text, f"mask {use}") for text, use in row.stretches)
        cards.append(blocks.Group((blocks.Text(row.title, "tag", "span"), blocks.Text(text, "text")), "card masked"))
    legend = MASKS + STEP_LABELS if any(row.has_step_labels for row in rows) else MASKS
    return section("Loss mask of the first rows", blocks.about(legend), *cards)


def efficiency(run: Run) -> dict[str, str]:
    """The cost of a run, formatted."""
    trainable, total = (number(run.result.get(name)) for name in ("trainable", "parameters"))
    memory = max((max(run.metrics[name][1]) for name in PEAKS if name in run.metrics), default=None)
    update, speed = run.after("perf/seconds"), run.after("perf/tokens_per_second")
    found = {
        "trainable parameters": _count(trainable),
        "all parameters": _count(total),
        "trainable share": f"{100 * trainable / total:.3g} %" if trainable is not None and total else "",
        "peak memory": f"{figure(memory)} GiB" if memory is not None else "",
        "time per update": duration(update) if update is not None and 0 <= update < MOST_SECONDS else "",
        "tokens per second": f"{speed:.0f}" if speed is not None and abs(speed) < MOST_SECONDS else "",
        "total time": run.took,
    }
    return {name: text for name, text in found.items() if text}


def _count(value: float | None) -> str:
    """1.06 million."""
    if value is None or not 0 <= value < MOST_SECONDS * 1e3:
        return ""
    for size, name in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if value >= size:
            return f"{value / size:.3g} {name}"
    return f"{value:.0f}"


def run_stats(run: Run, groups: Sequence[tuple[str, Sequence[Sample]]]) -> dict[str, Any]:
    """evaluation_stats.json: the held-out metrics before training and after it."""
    ends = {"before": 0, "after": -1, "sample": -1}
    return {"models": [_model_stats(run, tag, samples, ends[tag]) for tag, samples in groups], "notes": []}


def _model_stats(run: Run, tag: str, samples: Sequence[Sample], end: int) -> Mapping[str, Any]:
    metrics = {}
    for name, (_, values) in run.metrics.items():
        if is_held_out(name):
            found = interval_after(run, samples, name) if end else interval(samples, name, values[end])
            around = {"low": found[0].low, "high": found[0].high, "n": found[1]} if found else {}
            metrics[name] = {"value": values[end], "low": None, "high": None, "n": None} | around
    tasks = {"held_out": {"metrics": metrics, "example": "", "curves": {}, "notes": [], "seconds": None}}
    return {"name": tag, "path": str(run.path), "data": str(run.data.get("source", "")), "tasks": tasks}
