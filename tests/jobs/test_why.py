"""`postrain why`: effects of rows to first order, and a planted wrong row."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from postrain.cli import why as command
from postrain.jobs.influence import step_direction
from postrain.jobs.why import extremes
from tests.training_runs import shallow, small_run

POISON = 17


def test_step_direction_is_the_preconditioned_step_along_the_held_out_gradient():
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([3.0, 4.0])
    optimizer = torch.optim.AdamW([weight], lr=0.1, betas=(0.9, 0.75), eps=0.0)
    optimizer.state[weight] = {"step": torch.tensor(1.0), "exp_avg_sq": torch.tensor([1.0, 0.0])}
    method: Any = SimpleNamespace(max_grad_norm=1.0, optimizer=optimizer)
    # ‖g‖ = 5, so c = 1/5 and c·g = (0.6, 0.8). v = 0.75·(1, 0) + 0.25·(0.36, 0.64) = (0.84, 0.16), and
    # v̂ = v / (1 − 0.75²) = v / 0.4375 = (1.92, 0.365714). η·c·h / √v̂ with h = (1, 2): 0.02/1.385641, 0.04/0.604743.
    found = step_direction(method, {weight: torch.tensor([1.0, 2.0])})[weight]
    assert found.tolist() == pytest.approx([0.0144338, 0.0661438], rel=1e-5)


def test_extremes_do_not_overlap():
    rows: list[Any] = [1, 2, 3]
    assert extremes(rows, 5) == [("Most harmful", [1, 2]), ("Most helpful", [3])]
    assert extremes(rows, 1) == [("Most harmful", [1]), ("Most helpful", [3])]


def test_planted_wrong_row_is_the_most_harmful_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [{"prompt": f"Tom saw {n} dogs.", "completion": f"Tom has seen {n} dogs."} for n in range(24)]
    rows[POISON]["completion"] = " ".join(["It rained and rained."] * 6)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [word for word in shallow("sft") if not word.startswith("data")]
    words += ["data=jsonl", f"data.path={path}", "~data.source", "method.batch_size=20", "data.eval_rows=4"]
    run = small_run(tmp_path / "runs", *words, "evaluation.completions=0")
    assert command.main([str(run.path), "--update", "3"]) == 0
    found = json.loads((run.path / "why" / "update=000003" / "rows.json").read_text())
    assert (found["metric"], found["repeated_bit_for_bit"]) == ("eval/loss", True)
    # Rows are numbered from 1, as lines; a row that a batch of two epochs has twice is one row.
    assert found["ranked"][0]["row"] == POISON + 1
    effects = [row["effect"] for row in found["ranked"]]
    assert effects == sorted(effects, reverse=True)
    assert "Most harmful" in capsys.readouterr().out
    assert command.main([str(run.path), "--update", "9"]) == 2
    assert "has made the updates 1 to 3" in capsys.readouterr().err
