"""Metrics of the parts of the held-out rows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from postrain.errors import ConfigError
from postrain.evaluation.estimate import Estimate
from postrain.evaluation.evaluator import held_out_metrics, reference_metrics, task_rows
from postrain.evaluation.parts import check_part_names, with_parts
from postrain.evaluation.task import EvalResult
from postrain.hardware.shares import Share
from postrain.metrics import declared
from postrain.models.scoring import ReferenceScores
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

    def evaluate(self, batch: Rows, index: int, share: Share) -> dict[str, Mean]:
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


def test_several_items_of_a_row_belong_to_its_part_and_their_values_are_saved(data):
    first, second = (part.records[0].row for part in data.held_out[:2])
    rows = [(first, 1, True), (first, 3, False), (second, 1, True)]
    records = tuple({"row": f"{row}/{turn}", "held_out_row": row, "parsed": hit} for row, turn, hit in rows)
    result = with_parts(EvalResult(metrics={"parsed": Estimate.share([1, 0, 1])}, records=records), data)
    assert {name: (found.value, found.n) for name, found in result.metrics.items() if "/" in name} == {
        "a/parsed": (0.5, 2),
        "b/parsed": (1, 1),
    }
    saved = {name: totals.tolist() for name, (totals, _) in task_rows({"calls": result}).items()}
    assert saved == {"calls/parsed": [1, 0, 1], "calls/a/parsed": [1, 0], "calls/b/parsed": [1]}


def test_task_values_weighted_by_tokens_have_parts_with_their_weights(data):
    first, second = (part.records[0].row for part in data.held_out[:2])
    records = [{"row": first, "per_token": 2.0, "weight": 3}, {"row": second, "per_token": 1.0, "weight": 1}]
    result = with_parts(EvalResult(metrics={"per_token": Estimate.ratio([6, 1], [3, 1])}, records=tuple(records)), data)
    totals, counts = task_rows({"kl": result})["kl/a/per_token"]
    assert (result.metrics["a/per_token"].value, totals.tolist(), counts.tolist()) == (2, [6], [3])


def test_kl_of_a_part_is_that_of_its_completions():
    mask_BT = torch.tensor([[True, True], [True, False], [True, True]])
    kl_BT, logps_BT = torch.tensor([[0.5, 0.25], [0.125, 0.0], [1.0, 3.0]]), torch.full((3, 2), -2.0)
    scores = ReferenceScores(logps_BT, 2 * logps_BT, kl_BT, mask_BT, torch.zeros(3, 2))
    found: Any = reference_metrics(scores.select([2, 0]))
    assert (found["kl/exact"].value(), found["reference_logp"].value()) == (4.75 / 4, -4)
    assert [values.tolist() for values in found["kl/exact"].rows] == [[4.0, 0.75], [2, 2]]


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
