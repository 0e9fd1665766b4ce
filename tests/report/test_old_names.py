"""Folders of an earlier version: their metrics, tasks and keys are reported under the present names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from postrain.report.comparison_page import differing
from postrain.report.evaluations import read_evaluation
from postrain.report.folders import read_run
from postrain.report.run_page import efficiency
from postrain.report.runs_index import read_entries


def make(folder: Path, method: dict[str, Any], **files: Any) -> Path:
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"config": {"method": method}}))
    for name, value in files.items():
        (folder / name.replace("_json", ".json")).write_text(json.dumps(value) + "\n")
    return folder


def test_metrics_of_a_run_have_their_present_names(tmp_path: Path) -> None:
    old = {
        "update": 0, "eval/logp_change/chosen": 0.5, "group/all_equal": 0.25, "eval/undecided": 0.1,
        "perf/peak_memory_gb": 1.5,
    }  # fmt: skip
    path = make(tmp_path / "a", {}, metrics_jsonl=old)
    run = read_run(path)
    assert list(run.metrics) == [
        "eval/log_ratio/chosen", "group/frac_reward_zero_std", "eval/tie_rate", "perf/peak_memory_gib",
    ]  # fmt: skip
    assert efficiency(run)["peak memory"] == "1.50 GiB"
    # Not finished: the index reads its metrics too.
    assert "eval/log_ratio/chosen" in read_entries(tmp_path)[0].metrics


def test_keys_of_a_run_are_compared_under_their_present_names(tmp_path: Path) -> None:
    old = make(tmp_path / "old", {"resample": True, "reference_logps": "fresh", "beta": 0.1})
    new = make(tmp_path / "new", {"dynamic_sampling": True, "precompute_ref_log_probs": False, "beta": 0.2})
    assert differing([read_run(old), read_run(new)]) == {"method.beta": ["0.1", "0.2"]}


def test_tasks_of_an_evaluation_have_their_present_names(tmp_path: Path) -> None:
    wins = {"metrics": {"win_rate": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 8}}}
    gap = {"subject": "nano", "against": "a", "measure": "wins", "metric": "win_rate", "value": 0.1}
    stats = {"subjects": [{"name": "nano", "measures": {"wins": wins}}], "differences": [gap]}
    path = make(tmp_path / "e", {}, evaluation_stats_json=stats)
    (path / "wins.jsonl").write_text('{"subject": "nano", "row": 1}\n{"subject": "a", "row": 2}\n')
    found = read_evaluation(path)
    (model,) = found.models
    assert list(model.tasks) == ["win_rate"]
    assert [record["row"] for record in model.records["win_rate"]] == [1]
    assert list(found.differences) == [("win_rate", "win_rate")]
