"""Evaluation tasks during training: logged on the same held-out rows; notes are printed once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training_runs import small_run


def test_task_metrics_are_logged_at_every_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = small_run(
        tmp_path,
        "method=sft",
        "method.updates=1",
        "data.source.count=16",
        "evaluation=perplexity",
        "+evaluation/task@evaluation.tasks.preference=preference",
        "evaluation.completions=0",
    )
    first, last = (record for record in folder.metrics.read() if "eval/loss" in record)
    for record in (first, last):
        assert record["eval/perplexity/loss"] == pytest.approx(record["eval/loss"], rel=1e-5)
    assert first["eval/perplexity/loss"] != last["eval/perplexity/loss"]
    # The card and the report take the interval of the task's metrics from these rows.
    rows = {(one["update"], one["metric"]): (one["totals"], one["counts"]) for one in folder.held_out.read()}
    totals, counts = rows[1, "perplexity/loss"]
    assert sum(totals) / sum(counts) == pytest.approx(last["eval/perplexity/loss"], rel=1e-5)
    assert counts == rows[0, "perplexity/loss"][1]
    card = folder.model.joinpath("README.md").read_text()
    (line,) = (line for line in card.splitlines() if line.startswith("| eval/perplexity/perplexity |"))
    assert f"| {len(counts)} |" in line
    assert not folder.samples.path.exists() or not folder.samples.read()
    assert capsys.readouterr().out.count("evaluation.tasks.preference: needs preference pairs") == 1
