"""Pipelines and generations: stages of every kind side by side, and unfinished folders."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import yaml

from postrain.report import write_report
from postrain.report.blocks import Cell
from postrain.report.evaluations import shares
from postrain.report.folders import read_generation
from postrain.report.pipeline_page import read_stage, shared_scores, table
from tests.report.test_evaluation_page import make_evaluation
from tests.report.test_report import ODD, checked


def make_generation(path: Path, prompts: int = 6, completions: int = 3) -> Path:
    path.mkdir(parents=True)
    lines = [
        {
            "row": row,
            "prompt": f"{row} + 1 = ?",
            "completions": [f"The answer is {row + index}." for index in range(completions)],
            "rewards": [float(index == 1) for index in range(completions)],
            "gold": [0.5, 1.0, None],
            "finished": [True, True, False],
        }
        for row in range(prompts)
    ]
    (path / "completions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sampled = {"value": 1 / 3, "low": 0.2, "high": 0.5}
    (path / "summary.json").write_text(json.dumps({"prompts": prompts, "sampled": sampled, "greedy": None, "kept": 6}))
    (path / "status.json").write_text('{"status": "done", "seconds": 2}')
    return path


def make_pipeline(path: Path) -> Path:
    """A training run, two generations and a stage that has not started."""
    path.mkdir()
    names = {"sft": "1-sft", "test.base": "2-test-base", "test.sft": "2-test-sft", "plot": "3-plot"}
    steps = [{"stage": {"name": name, "folder": folder, "kind": "train"}} for name, folder in names.items()]
    text = yaml.safe_dump({"name": "tiny", "steps": steps})
    (path / "pipeline.yaml").write_text(f"# python train.py pipeline=tiny\n{text}")
    (path / "status.json").write_text('{"status": "failed", "reason": "stage plot: no <b>"}')
    (path / "summary.md").write_text("| stage | right |\n| --- | --- |\n| sft | 0.5 |\n")
    run = path / "1-sft"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"update": 0, "gold/total": 0.25}\n{"update": 4, "gold/total": 0.75}\n')
    sample = {"update": 4, "row": 0, "prompt": "0 + 1 = ?", "completion": "2"}
    (run / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    (run / "status.json").write_text('{"status": "done"}')
    make_generation(path / "2-test-base")
    make_generation(path / "2-test-sft")
    return path


def test_pipeline_page_has_all_stages(tmp_path: Path) -> None:
    path = make_pipeline(tmp_path / "tiny")
    text = checked(write_report(path).read_text(encoding="utf-8"))
    for wanted in (
        "stages done</span> 3 of 4",
        'gold</span> <span class="was">0.25</span>',
        "not started",
        "no &lt;b&gt;",
        'href="2-test-sft/report.html"',
        "6 of 18",
        "python train.py pipeline=tiny",
        "The same prompts, by stage",
    ):
        assert wanted in text, wanted
    # The generation had no report.
    checked((path / "2-test-base" / "report.html").read_text(encoding="utf-8"))
    assert (path / "2-test-base" / "response_lengths.png").is_file()
    assert (path / "model_comparison.png").is_file()


def test_pipeline_with_a_damaged_plan_shows_its_folders(tmp_path: Path) -> None:
    path = make_pipeline(tmp_path / "tiny")
    (path / "pipeline.yaml").write_text("steps: [")
    (path / "summary.md").write_text("|\n")
    text = checked(write_report(path, tmp_path / "out").read_text(encoding="utf-8"))
    assert "pipeline.yaml is damaged" in text
    assert "2 test-base" in text
    assert not (path / "2-test-base" / "report.html").exists()


def test_shared_scores_are_of_at_least_two_stages(tmp_path: Path) -> None:
    stages = [read_stage(name, make_generation(tmp_path / name)) for name in ("a", "b")]
    stages.append(read_stage("c", make_evaluation(tmp_path / "c")))
    ((name, rows),) = shared_scores(stages)
    assert name == "accuracy, sampled"
    assert [(who, round(point.x, 3), index) for who, point, index in rows] == [("a", 0.333, 0), ("b", 0.333, 1)]
    assert stages[2].metrics[0] == ("gold total", "", "0.30", "0.20 … 0.40")


def test_summary_is_a_table(tmp_path: Path) -> None:
    (tmp_path / "summary.md").write_text("| stage | time |\n| --- | --- |\n| sft |  |\n| dpo | 2 s |\n")
    assert table(tmp_path / "summary.md") == (["stage", "time"], [("sft", [Cell("")]), ("dpo", [Cell("2 s")])])
    assert table(tmp_path / "none.md") == ([], [])


def test_completions_have_their_scores(tmp_path: Path) -> None:
    found = read_generation(make_generation(tmp_path / "g"))
    first, second, third = found.prompts[0]
    assert (first.scores, first.finished) == ({"reward/total": 0.0, "gold/total": 0.5}, True)
    assert second.scores["gold/total"] == 1.0
    assert (third.scores, third.finished) == ({"reward/total": 0.0}, False)
    assert shares(found)["accuracy, sampled"].n == 6


@pytest.mark.parametrize("seed", range(3))
def test_generation_page_survives_odd_files(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    path = make_generation(tmp_path / "g", prompts=3)
    record = {name: rng.choice(ODD) for name in ("row", "prompt", "completions", "rewards", "gold", "finished")}
    listed = {name: [rng.choice(ODD)] * rng.randrange(4) for name in ("completions", "rewards", "gold", "finished")}
    with (path / "completions.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n" + json.dumps({"row": 1, "prompt": "p", **listed}) + '\n{"ro')
    (path / "summary.json").write_text(json.dumps({name: rng.choice(ODD) for name in ("prompts", "sampled", "kept")}))
    checked(write_report(path).read_text(encoding="utf-8"))
