"""The page and figure of a sweep: the answer, failed jobs, and the command that resumes it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from postrain.report import write_report
from postrain.report.blocks import Cell
from postrain.report.sweep_page import command, ends, frontier, lines, mean_curve, table, write_sweep
from postrain.report.sweep_results import numeric_key, read_sweep
from postrain.report.sweep_summary import rows, sentences
from tests.report.sweeps import make_sweep
from tests.report.test_report import checked


def page_of(path: Path, output: Path | None = None) -> str:
    return checked(write_sweep(path, output).read_text(encoding="utf-8"))


def test_sweep_page_answers_the_question(tmp_path: Path) -> None:
    path = make_sweep(tmp_path / "kl")
    (path / "jobs" / "03-abcd" / "status.json").write_text(json.dumps({"status": "failed", "reason": "loss is nan"}))
    page = write_report(path, tmp_path / "out")
    text = checked(page.read_text(encoding="utf-8"))
    for wanted in (
        "What does it cost?",
        "kl_coef=0.0 has the highest gold, 0.51",
        "untrained",
        "<b>kl_coef=0.5 seed=1 failed.</b> loss is nan",
        'href="../kl/jobs/00-abcd/report.html"',
        "python train.py sweep=kl resume=",
        "worst: kl_coef=0.5 seed=0",
        "1 of 2",
    ):
        assert wanted in text, wanted
    assert (page.parent / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((page.parent / "sample_responses.json").read_text())[0]["completion"] == "gold 0.50"


def test_table_marks_the_best_and_has_n(tmp_path: Path) -> None:
    # Two seeds 0.02 apart: standard error 0.01, half width 12.7062 · 0.01 / (0.51 · 0.49) on the logit scale, so 0.51
    # has the interval 0.385 … 0.634. All KLs are equal: no interval.
    columns, rows = table(read_sweep(make_sweep(tmp_path / "kl")))
    assert columns == ["setting", "gold", "eval kl", "jobs done", "time"]
    assert rows[0] == ("untrained", [Cell("0.10", "n=2"), Cell("0", "n=2"), Cell("–"), Cell("–")])
    assert rows[1] == (
        "kl_coef=0.0",
        [Cell("0.51", "0.38 … 0.63, n=2", True), Cell("1.00", "n=2"), Cell("2"), Cell("2.0 s")],
    )
    assert not rows[2][1][0].best


def test_settings_of_a_numeric_key_are_joined_in_order(tmp_path: Path) -> None:
    study = read_sweep(make_sweep(tmp_path / "kl", values=(0.5, 0.0, 2), seeds=(0,)))
    assert numeric_key(study) == "method.kl_coef"
    ((name, cells),) = lines(study, "method.kl_coef")
    assert (name, [cell.settings["method.kl_coef"] for cell in cells]) == ("", [0.0, 0.5, 2])
    methods = read_sweep(make_sweep(tmp_path / "methods", key="method", values=("ppo", "dpo"), seeds=(0,)))
    assert numeric_key(methods) is None


@pytest.mark.parametrize(
    ("key", "values", "keys", "title"),
    [
        ("method.kl_coef", (0.0, 0.5), {}, "Gold against eval kl"),
        ("method.learning_rate", (1e-5, 1e-4, 1e-2), {"plot": {"x": None, "y": None}}, "Gold against learning_rate"),
        ("method", ("ppo", "dpo"), {"plot": None}, "Gold"),
        # A metric that no job measured is not an axis.
        ("method", ("ppo", "dpo"), {"plot": {"x": "eval/odd", "y": "gold/total"}}, "Gold"),
    ],
)
def test_figure_fits_the_varied_keys(
    tmp_path: Path, key: str, values: tuple[Any, ...], keys: dict[str, Any], title: str
) -> None:
    drawn = frontier(read_sweep(make_sweep(tmp_path / "kl", key=key, values=values, **keys)))
    assert drawn is not None
    assert drawn.title == title
    assert drawn.svg.startswith("<svg")


def test_mean_over_seeds_is_of_common_updates() -> None:
    assert mean_curve([([0, 2, 4], [1.0, 2.0, 3.0]), ([0, 4], [2.0, 5.0])]) == ([0, 4], [1.5, 4.0])
    assert mean_curve([([1, 2], [1.0, 2.0]), ([5], [2.0])]) == ([1, 2], [1.0, 2.0])


def test_sweep_without_a_finished_job_has_a_warning(tmp_path: Path) -> None:
    path = make_sweep(tmp_path / "kl", seeds=(0,))
    for job in (path / "jobs").iterdir():
        (job / "status.json").write_text(json.dumps({"status": "failed", "reason": "<b>no</b>"}))
    text = page_of(path)
    assert "No job has finished" in text
    assert "&lt;b&gt;no&lt;/b&gt;" in text
    assert not (path / "frontier.png").exists()
    (path / "jobs.json").write_text('[{"folder": 3')
    assert "The sweep has no jobs" in page_of(path)


def test_sweep_page_survives_damaged_jobs(tmp_path: Path) -> None:
    path = make_sweep(tmp_path / "kl", values=("a", None, [1], {"b": 2}), measured=lambda cell, seed: (math.nan, 1e308))
    (path / "jobs" / "00-abcd" / "metrics.jsonl").write_text('{"update": 1, "gold/total": "nan"}\n{"upd')
    (path / "jobs" / "01-abcd" / "samples.jsonl").write_text("null\n")
    (path / "jobs" / "02-abcd" / "result.json").write_text("[]")
    page_of(path)
    (path / "sweep.yaml").write_text("{")
    assert "sweep.yaml is damaged" in page_of(path)


def test_samples_are_of_the_best_and_the_worst_setting(tmp_path: Path) -> None:
    study = read_sweep(make_sweep(tmp_path / "kl"))
    assert [(tag, found[0].completion) for tag, found in ends(study)] == [
        ("best: kl_coef=0.0 seed=0", "gold 0.50"),
        ("worst: kl_coef=0.5 seed=0", "gold 0.40"),
    ]


def test_command_of_value_lists_without_a_file_has_m() -> None:
    assert command(["sweep=kl"], "resume=a b") == "python train.py sweep=kl 'resume=a b'"
    assert command(["method=ppo,dpo"]) == "python train.py -m method=ppo,dpo"


def test_sweep_of_pipelines_with_claims_is_a_page_of_verdicts(tmp_path: Path) -> None:
    path = make_sweep(tmp_path / "literature", "experiment", ("one", "two"), seeds=(0,))
    for number, decision in enumerate(("reproduced", "not here")):
        folder = path / "jobs" / f"{number:02}-abcd"
        gap = {"comparison": "a/x > b/x", "value": 0.3, "low": 0.1, "high": 0.5}
        claim = {
            "claim": f"Claim {number}",
            "holds": "a/x > b/x",
            "decision": decision,
            "published": 0.2,
            "gaps": [gap],
        }
        claims = {"claims": [{**claim, "reason": "too small"}], "reference": {"title": "A paper"}, "seeds": [0, 1]}
        (folder / "result.json").write_text(json.dumps({"metric": "x", "objective": 1.0, "claims": claims}))
    found = read_sweep(path)
    assert sentences(found)[0] == "1 of 2 claims reproduced, 1 not here, in 2 pipelines."
    assert sentences(found)[2] == (
        "experiment=two seed=0: 0 of 1 claim reproduced, 1 not here. Claim 1: not here, too small."
    )
    columns, lines = rows(found)
    assert columns == ["pipeline", "verdict", "claim", "published", "gap [95 % interval]"]
    assert lines[0] == (True, ["experiment=one seed=0", "reproduced", "Claim 0", "0.20", "0.30 [0.10, 0.50]"])
    page = page_of(path)
    for shown in ('badge done">reproduced', 'badge failed">not here', "Claim 1", "A paper", "jobs/00-abcd/report.html"):
        assert shown in page
    assert not (path / "frontier.png").exists()
