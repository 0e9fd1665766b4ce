"""Metrics of the parts of the held-out rows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from postrain.errors import ConfigError
from postrain.evaluation.estimate import Estimate
from postrain.evaluation.evaluator import held_out_metrics
from postrain.evaluation.parts import check_part_names, with_parts
from postrain.evaluation.task import EvalResult
from postrain.metrics import declared
from postrain.types import Mean, Rows
from tests.data.helpers import write_lines
from tests.data.modules import prepared


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Two sources with four and six held-out rows, and replayed text."""
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "a.jsonl", [{"prompt": f"a {n}", "completion": "x"} for n in range(40)])
    write_lines(tmp_path / "b.jsonl", [{"prompt": f"b {n}", "completion": "y"} for n in range(80)])
    (tmp_path / "base.txt").write_text("\n\n".join(f"{n} foxes ran. " * 200 for n in range(9)))
    return prepared("world_demonstrations", "data.mix={a.jsonl: 1, b.jsonl: 1}", "data.replay=base.txt")


class CountsRows:
    """A method whose loss on a batch is the number of its rows, in one batch."""

    device = "cpu"

    def evaluate(self, batch: Rows, index: int) -> dict[str, Mean]:
        return {"loss": Mean(10.0 * index, 1, rows=(torch.ones(len(batch)), torch.ones(len(batch))))}

    def combined(self, metrics: dict[str, Mean]) -> dict[str, float]:
        return {name: value.value() for name, value in metrics.items()}


def test_totals_leave_out_replay_and_parts_have_their_own_metrics_and_rows(data):
    method: Any = CountsRows()
    metrics, rows = held_out_metrics(method, data)
    # One batch each of a, b and replay, with the losses 0, 10 and 20.
    assert metrics == {"eval/loss": 5, "eval/a/loss": 0, "eval/b/loss": 10, "eval/replay/loss": 20}
    assert {name: len(totals) for name, (totals, _) in rows.items() if name != "replay/loss"} == {
        "loss": 10,
        "a/loss": 4,
        "b/loss": 6,
    }


def test_task_metrics_that_are_means_over_rows_have_parts(data):
    first, second = (part.records[0].row for part in data.held_out[:2])
    records = ({"row": first, "accuracy": True}, {"row": second, "accuracy": False})
    result = with_parts(EvalResult(metrics={"accuracy": Estimate.share([1, 0])}, records=records), data)
    assert {name: found.value for name, found in result.metrics.items()} == {
        "accuracy": 0.5,
        "a/accuracy": 1,
        "b/accuracy": 0,
    }


def test_parts_cannot_have_the_name_of_other_metrics(data):
    check_part_names(data, ["perplexity"])
    with pytest.raises(ConfigError, match="data: a cannot name held-out rows"):
        check_part_names(data, ["a"])
    named: Any = SimpleNamespace(held_out=[SimpleNamespace(name="reward")])
    with pytest.raises(ConfigError, match="data: reward cannot name held-out rows"):
        check_part_names(named, [])


def test_metric_of_a_part_is_declared_like_the_metric():
    assert declared("eval/maths/completion/length") == declared("completion/length")
    assert declared("eval/maths/gold/total") == declared("gold/total")
