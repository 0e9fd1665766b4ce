"""The page of a pipeline: the metrics of each stage side by side, with links to their reports."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from postrain.config.override_text import resume_command
from postrain.formatting import figure, short
from postrain.jsonl import Record, read_json, records_of
from postrain.report import blocks
from postrain.report.changes import changes
from postrain.report.charts import Bars, bar_picture, bars
from postrain.report.claims import claims_table, counts, numbers_table, read_claims, source_line
from postrain.report.evaluations import EvalTask, Number, central, read_evaluation, shares
from postrain.report.folders import Folder, common, read_generation, read_run
from postrain.report.generation_page import write_generation
from postrain.report.headline_cards import interval_text
from postrain.report.page import PAGE, RESPONSES, Page, link, resumption, section, write_page
from postrain.report.panels import headlines
from postrain.report.pictures import Sheet
from postrain.report.samples import MOST_PROMPTS, Sample, last, responses, side_by_side
from postrain.report.values import read_yaml

FILE = "pipeline.yaml"
STAGES = (
    "Training stages: metrics before → after, with the 95 % interval of the change. Other stages: values with 95 % "
    "intervals."
)
MOST_HEADLINES, MOST_FILES, MOST_BARS = 3, 8, 9


@dataclass(frozen=True, kw_only=True)
class Stage(Folder):
    """A stage of a pipeline."""

    name: str
    metrics: Sequence[tuple[str, str, str, str]]
    """Name, value before (or empty), value, and its interval, that of the change, or why there is none."""
    scores: Mapping[str, Number]
    """Metrics that can be compared between stages."""
    samples: Sequence[Sample]

    @property
    def state(self) -> str:
        """done, failed, ...; "not started" where there is nothing yet."""
        return super().state if self.status else "not started"


def write_pipeline(path: Path, output: Path | None = None, formats: Sequence[str] = ()) -> Path:
    """Writes report.html, model_comparison.png and sample_responses.json into the folder or into `output`.

    Writes reports of generation stages that have none. Raises ConfigError if a file cannot be written.
    """
    folder, plan, whole = output or path, read_yaml(path / FILE), Folder(**common(path))
    stages = [read_stage(name, path / index) for name, index in _stages(plan, path)]
    if output is None:
        for stage in stages:
            if (stage.path / "completions.jsonl").is_file() and not (stage.path / PAGE).is_file():
                write_generation(stage.path)
    groups = [(stage.name, stage.samples) for stage in stages if stage.samples]
    measured = shared_scores(stages)
    same_prompts = sorted(side_by_side(groups, least=2), key=lambda one: -len(one.answers))
    summary = blocks.Table(*table(path / "summary.md"))
    name, command = str(plan.get("name") or path.name), _command(path)
    claims = read_claims(read_json(path / "result.json"))
    sections = (
        claims
        and section(
            "Claims",
            blocks.Text(source_line(claims)),
            blocks.Text(f"{counts(claims.claims)} over seeds {', '.join(claims.seeds)}. {claims.differences}"),
            claims_table(claims),
            numbers_table(claims),
        ),
        section(
            "Stages",
            blocks.about(STAGES),
            blocks.Group([_card(number, one, folder) for number, one in enumerate(stages, start=1)]),
        ),
        section("Summary", summary),
        section(
            "Stages compared",
            blocks.Pictures(
                [bar_picture(name.capitalize(), rows) for name, rows in measured],
                large=True,
                about="Whiskers: 95 % intervals.",
            ),
        ),
        section(
            "The same prompts, by stage",
            blocks.about(
                "Prompts of at least two stages. Completions of the last evaluation, or the first one of a generation."
            ),
            blocks.Samples(same_prompts[:MOST_PROMPTS]),
        ),
        resumption("finished stages are skipped", resume_command("train", whole.path), command, whole.path),
    )
    done = f"{sum(stage.state == 'done' for stage in stages)} of {len(stages)}"
    header = (blocks.Facts([("stages done", done)]), blocks.end_reason(whole.status.get("reason")))
    heading = blocks.line(name, blocks.badge(whole.state))
    missing = [] if plan else [f"{FILE} is damaged: the stages are those with a folder"]
    page = Page(
        kind="pipeline",
        title=f"pipeline {name}",
        heading=heading,
        header=header,
        sections=sections,
        missing=missing,
        sheets=[
            Sheet("model_comparison", "stages, with 95 % intervals", [(name, bars(rows)) for name, rows in measured])
        ],
        table=summary,
        files={RESPONSES: responses(groups)} if groups else {},
    )
    return write_page(folder, page, formats)


def _card(number: int, stage: Stage, folder: Path) -> blocks.Group:
    lines = [
        blocks.line(
            blocks.span(label, "muted"), *_before(before), blocks.bold(after), blocks.span(around, "small muted")
        )
        for label, before, after, around in stage.metrics
    ]
    anchors = [blocks.anchor(label, target) for label, target in links(stage, folder).items()]
    took = blocks.span(f"took {stage.took}", "muted") if stage.took else ""
    return blocks.card(
        blocks.line(str(number), stage.name, blocks.badge(stage.state)),
        *map(blocks.Text, lines),
        blocks.note(str(stage.status.get("reason") or "")),
        blocks.Text(blocks.line(took, *anchors), "small"),
    )


def _before(before: str) -> tuple[Markup, ...]:
    return (blocks.span(before, "was"), blocks.ARROW) if before else ()


def _command(path: Path) -> str:
    """The command that started it: the first line of pipeline.yaml."""
    file = path / FILE
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    return lines[0].removeprefix("# ") if lines and lines[0].startswith("# ") else ""


def _stages(plan: Record, path: Path) -> list[tuple[str, str]]:
    """Name and folder of each stage; of those that have a folder, where the plan cannot be read."""
    stages = [step.get("stage") for step in records_of(plan.get("steps"))]
    found = [(_label(one), str(one["folder"])) for one in records_of(stages) if {"name", "folder"} <= one.keys()]
    present = [item.name for item in path.iterdir() if re.match(r"\d+-", item.name)]
    present.sort(key=lambda name: (int(name.partition("-")[0]), name))
    return found or [(name.partition("-")[2], name) for name in present]


def _label(stage: Record) -> str:
    return f"{stage['name']} seed={stage['seed']}" if "seed" in stage else str(stage["name"])


def read_stage(name: str, folder: Path) -> Stage:
    """The results in the folder of a stage of any kind."""
    metrics: list[tuple[str, str, str, str]] = []
    scores: Mapping[str, Number] = {}
    samples: Sequence[Sample] = ()
    if (folder / "metrics.jsonl").is_file():
        run = read_run(folder)
        found = changes(run)
        metrics = [
            (short(name), "" if one is None else figure(one), figure(two), interval_text(run, found, name))
            for name, one, two in headlines(run.metrics)
        ]
        samples = last(run.samples)
    elif (folder / "completions.jsonl").is_file():
        generation = read_generation(folder)
        scores, kept = shares(generation), generation.kept()
        metrics = [*_single(scores), *([("selected", "", kept, "")] if kept else [])]
        samples = [prompt[0] for prompt in generation.prompts]
    elif (folder / "evaluation_stats.json").is_file() and (models := read_evaluation(folder).models):
        scores, samples = _central(models[0].tasks), models[0].samples
        metrics = _single(scores)
    known = {**common(folder), "path": folder}
    return Stage(**known, name=name, metrics=metrics[:MOST_HEADLINES], scores=scores, samples=samples)


def _single(scores: Mapping[str, Number]) -> list[tuple[str, str, str, str]]:
    return [(name, "", figure(found.value), found.interval_text) for name, found in scores.items()]


def _central(tasks: Mapping[str, EvalTask]) -> dict[str, Number]:
    """The central metric of each task."""
    found = {name: (central(one.metrics), one.metrics) for name, one in tasks.items() if one.metrics}
    return {short(f"{name} {metric}"): metrics[metric] for name, (metric, metrics) in found.items()}


def shared_scores(stages: Sequence[Stage]) -> list[tuple[str, Bars]]:
    """Metrics of at least two stages, one bar per stage."""
    names = dict.fromkeys(name for stage in stages for name in stage.scores)
    rows: dict[str, Bars] = {
        name: [(one.name, one.scores[name].point, index) for index, one in enumerate(stages) if name in one.scores]
        for name in names
    }
    return [(name, found) for name, found in rows.items() if len(found) > 1][:MOST_BARS]


def links(stage: Stage, folder: Path) -> dict[str, str]:
    """Links to the report of a stage, else to its images and tables."""
    if (stage.path / PAGE).is_file():
        return {"report": link(stage.path / PAGE, folder)}
    files = sorted(stage.path.glob("*.png")) + sorted(stage.path.glob("*.md")) if stage.path.is_dir() else []
    return {file.name: link(file, folder) for file in files[:MOST_FILES]}


def table(path: Path) -> tuple[list[str], list[tuple[str, list[blocks.Cell]]]]:
    """The rows of the pipeline's summary.md."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    rows = [[cell.strip() for cell in line.strip().strip("|").split(" | ")] for line in lines if line.startswith("|")]
    if len(rows) < 3:
        return [], []
    return rows[0], [(row[0], [blocks.Cell(text) for text in row[1:]]) for row in rows[2:]]
