"""Damaged or foreign files in a folder: a report that lists them, or an error of one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from postrain.cli.main import prepend_sweep_overrides
from postrain.errors import ConfigError
from postrain.jobs.pipeline import Pipeline
from postrain.jobs.sweep import earlier_jobs
from postrain.jsonl import is_bounded, read_json
from postrain.report.evaluations import read_evaluation
from postrain.report.folders import read_generation, read_run
from postrain.report.pipeline_page import write_pipeline
from postrain.report.runs_index import read_entries
from postrain.report.sweep_results import read_sweep

ODD = {
    "empty": b"",
    "binary": b"\0\1\xff\xfe",
    "list": b"[1]",
    "number": b"7",
    "deep": b"[" * 3000,
    "deep map": b'{"a":' * 3000,
    "deep and whole": b'{"a":' * 300 + b"1" + b"}" * 300,
    "digits": b'{"a": ' + b"9" * 5000 + b"}",
    "recursive": b"a: &a [*a]\n",
    "a million copies": b"".join(
        f"{name}: &{name} [{','.join([f'*{before}' if before else 'x'] * 30)}]\n".encode()
        for before, name in zip(["", *"abcd"], "abcde", strict=True)
    ),
    "jobs of odd types": b'[{"folder": 3}, {"folder": "a\\u0000b", "settings": [1], "seed": {"a": 1}, "label": null}]',
}
READERS: dict[str, Any] = {
    "config.yaml": read_run,
    "manifest.json": read_run,
    "metrics.jsonl": read_run,
    "status.json": read_run,
    "result.json": read_run,
    "samples.jsonl": read_run,
    "summary.json": read_generation,
    "completions.jsonl": read_generation,
    "evaluation_stats.json": read_evaluation,
    "sample_responses.json": read_evaluation,
    "pipeline.yaml": write_pipeline,
    "sweep.yaml": read_sweep,
    "jobs.json": read_sweep,
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("name", READERS)
def test_report_survives_odd_files(name: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("name: x\n")
    (tmp_path / name).write_bytes(ODD[kind])
    READERS[name](tmp_path)
    if name.endswith(".yaml"):
        return  # The index reads YAML with the same function, slowly.
    below = tmp_path / "below"
    below.mkdir()
    (below / name).write_bytes(ODD[kind])
    read_entries(tmp_path)


@pytest.mark.parametrize("kind", [kind for kind in ODD if kind != "a million copies"])
def test_resuming_with_odd_files_is_an_error_of_one_line(kind: str, tmp_path: Path) -> None:
    for name, opened in (
        ("sweep.yaml", lambda: prepend_sweep_overrides([f"resume={tmp_path}"])),
        ("pipeline.yaml", lambda: Pipeline.load(tmp_path)),
    ):
        (tmp_path / name).write_bytes(ODD[kind])
        with pytest.raises(ConfigError) as caught:
            opened()
        assert "\n" not in str(caught.value)
    (tmp_path / "jobs.json").write_bytes(ODD[kind])
    assert earlier_jobs(tmp_path, []) == []


def test_modest_limits_depth_and_size(tmp_path: Path) -> None:
    assert is_bounded({"a": [1, {"b": 2}]}, depth=4, size=5)
    assert not is_bounded({"a": [1, {"b": 2}]}, depth=3)
    assert not is_bounded({"a": [1, {"b": 2}]}, size=3)
    loop: list[Any] = []
    loop.append(loop)
    assert not is_bounded(loop)
    (tmp_path / "a.json").write_text(json.dumps({"a": [1]}))
    assert read_json(tmp_path / "a.json") == {"a": [1]}
