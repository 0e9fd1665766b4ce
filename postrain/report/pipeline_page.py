"""The page of a pipeline: what each stage made of what the one before it left, with a way to its own report."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from postrain.formatting import figure, short
from postrain.jsonl import Record, modest
from postrain.report.charts import Spot, bars
from postrain.report.efficiency import took_of
from postrain.report.evaluation_data import Number, read_evaluation
from postrain.report.evaluation_pictures import CENTRAL, Bars
from postrain.report.generation_page import read_generation, write_generation
from postrain.report.page import PAGE, RESPONSES, Cell, link, picture, write_json, write_page
from postrain.report.panels import headlines
from postrain.report.pictures import write_png
from postrain.report.run_data import Sample, read_run, state_of
from postrain.report.samples import SHOWN, last, responses, side_by_side
from postrain.runs.status import Status

FILE = "pipeline.yaml"
MOST_HEADLINES, MOST_FILES, MOST_BARS = 3, 8, 9


@dataclass(frozen=True)
class Stage:
    """One card."""

    name: str
    folder: Path
    status: Record
    told: tuple[tuple[str, str, str], ...]
    """What came out: name, value before (or nothing), value."""
    scores: Mapping[str, Number]
    """What can be set beside other stages."""
    samples: tuple[Sample, ...]

    @property
    def state(self) -> str:
        """done, failed, ...; "not started" where there is nothing yet."""
        return state_of(self.status) if self.status else "not started"

    @property
    def took(self) -> str:
        """How long it ran."""
        return took_of(self.status)


def write_pipeline(path: Path, output: Path | None = None) -> Path:
    """Writes report.html, model_comparison.png and sample_responses.json into the folder or into `output`.

    Generations among the stages get a report of their own where they have none. Raises ConfigError where something
    cannot be written.
    """
    folder, (plan, missing) = output or path, _plan(path)
    stages = [read_stage(name, path / place) for name, place in _stages(plan, path)]
    if output is None:
        for stage in stages:
            if (stage.folder / "completions.jsonl").is_file() and not (stage.folder / PAGE).is_file():
                write_generation(stage.folder)
    groups = [(stage.name, stage.samples) for stage in stages if stage.samples]
    measured, summary = beside(stages), table(path / "summary.md")
    shown = sorted(side_by_side(groups, least=2), key=lambda one: -len(one.answers))
    status = Status(path / "status.json").current()
    page = write_page(
        folder,
        "pipeline.html",
        {
            "name": str(plan.get("name") or path.name),
            "state": state_of(status),
            "status": status,
            "facts": [("stages done", f"{sum(s.state == 'done' for s in stages)} of {len(stages)}")],
            "stages": [(stage, links(stage, folder)) for stage in stages],
            "bars": [
                picture(name.capitalize(), "", bars(rows), size=(5.0, 0.5 + 0.28 * len(rows)))
                for name, rows in measured
            ],
            "table": summary,
            "shown": shown[:SHOWN],
            "again": _command(path),
            "path": path.resolve(),
            "missing": missing,
        },
    )
    if measured:
        drawn = [(name, bars(rows)) for name, rows in measured]
        write_png(folder / "model_comparison.png", "what the stages made, with 95 % intervals", drawn)
    if groups:
        write_json(folder / RESPONSES, responses(groups))
    return page


def _plan(path: Path) -> tuple[Record, list[str]]:
    try:
        found = yaml.safe_load((path / FILE).read_text(encoding="utf-8", errors="replace"))
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        found = None
    return (
        (found, [])
        if isinstance(found, dict) and modest(found)
        else ({}, [f"{FILE} is damaged: the stages are those with a folder"])
    )


def _command(path: Path) -> str:
    """The command that started it: the first line of pipeline.yaml."""
    file = path / FILE
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    return lines[0].removeprefix("# ") if lines and lines[0].startswith("# ") else ""


def _stages(plan: Record, path: Path) -> list[tuple[str, str]]:
    """Name and folder of each stage; of those that have a folder, where the plan cannot be read."""
    steps = plan.get("steps")
    stages = [step.get("stage") for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []
    found = [
        (str(one["name"]), str(one["folder"]))
        for one in stages
        if isinstance(one, dict) and {"name", "folder"} <= one.keys()
    ]
    there = sorted(
        (item.name for item in path.iterdir() if re.match(r"\d+-", item.name)),
        key=lambda name: int(name.partition("-")[0]),
    )
    return found or [(name.partition("-")[2], name) for name in there]


def read_stage(name: str, folder: Path) -> Stage:
    """What a stage has left, whatever it was."""
    told: list[tuple[str, str, str]] = []
    scores: dict[str, Number] = {}
    samples: Sequence[Sample] = ()
    if (folder / "metrics.jsonl").is_file():
        run = read_run(folder)
        told = [(short(metric), figure(one), figure(two)) for metric, one, two in headlines(run.metrics)]
        samples = last(run.samples)
    elif (folder / "completions.jsonl").is_file():
        generation = read_generation(folder)
        scores = generation.shares()
        told = [(metric, "", figure(found.value)) for metric, found in scores.items()]
        told += [("kept", "", kept)] if (kept := generation.kept()) else []
        samples = [prompt[0] for prompt in generation.prompts]
    elif (folder / "evaluation_stats.json").is_file():
        subjects = read_evaluation(folder).subjects
        scores = _central(subjects[0].measures) if subjects else {}
        told = [(metric, "", figure(found.value)) for metric, found in scores.items()]
        samples = subjects[0].samples if subjects else ()
    return Stage(
        name, folder, Status(folder / "status.json").current(), tuple(told[:MOST_HEADLINES]), scores, tuple(samples)
    )


def _central(measures: Mapping[str, Any]) -> dict[str, Number]:
    """What each measure is about."""
    found = {}
    for name, one in measures.items():
        metric = next((metric for metric in (*CENTRAL, *one.metrics) if metric in one.metrics), None)
        if metric is not None:
            found[short(f"{name} {metric}")] = one.metrics[metric]
    return found


def beside(stages: Sequence[Stage]) -> list[tuple[str, Bars]]:
    """Numbers that at least two stages have measured, a bar a stage."""
    names = dict.fromkeys(name for stage in stages for name in stage.scores)
    found = []
    for name in names:
        rows = [
            (stage.name, _spot(stage.scores[name]), index) for index, stage in enumerate(stages) if name in stage.scores
        ]
        found += [(name, rows)] if len(rows) > 1 else []
    return found[:MOST_BARS]


def _spot(found: Number) -> Spot:
    around = None if found.low is None or found.high is None else (found.low, found.high)
    return Spot(found.value, 0, around)


def links(stage: Stage, folder: Path) -> dict[str, str]:
    """The ways to what a stage has left: its report, else its pictures and tables."""
    if (stage.folder / PAGE).is_file():
        return {"report": link(stage.folder / PAGE, folder)}
    files = sorted(stage.folder.glob("*.png")) + sorted(stage.folder.glob("*.md")) if stage.folder.is_dir() else []
    return {file.name: link(file, folder) for file in files[:MOST_FILES]}


def table(path: Path) -> tuple[list[str], list[tuple[str, list[Cell]]]]:
    """The rows of the pipeline's summary.md."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    rows = [[cell.strip() for cell in line.strip().strip("|").split(" | ")] for line in lines if line.startswith("|")]
    if len(rows) < 3:
        return [], []
    return rows[0], [(row[0], [Cell(text) for text in row[1:]]) for row in rows[2:]]
