"""`postrain why`: effects of rows to first order, and a planted wrong row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from postrain.cli import why as command
from postrain.errors import ConfigError
from postrain.jobs.influence import Influence, RowEffect, step_direction
from postrain.jobs.why import extremes, why
from postrain.methods.online import Online
from postrain.runs.folder import RunFolder
from postrain.types import LossSum, Rows
from tests.training_runs import shallow, small_run

POISON = 17


def test_step_direction_is_the_preconditioned_step_along_the_held_out_gradient():
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([3.0, 4.0])
    optimizer = torch.optim.AdamW([weight], lr=0.1, betas=(0.9, 0.75), eps=0.0)
    optimizer.state[weight] = {"step": torch.tensor(1.0), "exp_avg_sq": torch.tensor([1.0, 0.0])}
    # The critic has no held-out gradient, but is clipped with the others: ‖g‖ = √(3² + 4² + 12²) = 13, c = 2.6/13.
    critic = nn.Parameter(torch.zeros(1))
    critic.grad = torch.tensor([12.0])
    method: Any = SimpleNamespace(max_grad_norm=2.6, optimizer=optimizer, trainable_parameters=lambda: [weight, critic])
    # c·g = (0.6, 0.8). v = 0.75·(1, 0) + 0.25·(0.36, 0.64) = (0.84, 0.16), and
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


class Samples(Online):
    """A method with the loss weight · (sum of the tokens)."""

    weight = nn.Parameter(torch.ones(1))
    components = cast(Any, SimpleNamespace(template=SimpleNamespace(decode_all=str)))
    last_step_BT = None

    def __init__(self) -> None:
        """Without a model."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.weight.grad = None

    def loss_sum(self, batch: Rows) -> LossSum:
        return LossSum(self.weight.sum() * sum(batch.ids[0].tolist()), {})


def test_equal_samples_of_a_prompt_are_rows_of_their_own():
    method, found = Samples(), Influence(1)
    rows = Rows((torch.tensor([1, 2]),) * 3, (torch.tensor([False, True]),) * 3, (7, 7, 8))
    for _ in range(2):
        # Two epochs: each mini-batch begins to count again.
        found.seen.clear()
        for index in range(3):
            found.add(method, rows.select([index]), 1, -1.0, {method.weight: torch.tensor([0.5])})
    # 0.5 · (1 + 2) in each of two epochs.
    assert [(row.row, row.effect) for row in found.rows.values()] == [(7, 3.0), (7, 3.0), (8, 3.0)]


def test_update_without_gradients_is_an_error_and_a_damaged_record_a_difference(tmp_path, monkeypatch):
    run, repeated = RunFolder.at(tmp_path / "run"), RunFolder.at(tmp_path / "repeated")
    run.config.write_text("{model: {}, data: {}, trainer: {}, seed: 0}")
    run.metrics.append({"update": 2})
    repeated.metrics.append({"update": 1, "loss": 0.5})
    rows: dict[str, RowEffect] = {}

    def replayed(*_: Any, callbacks: Sequence[Influence], **__: Any) -> RunFolder:
        callbacks[0].rows = rows
        return repeated

    monkeypatch.setattr("postrain.jobs.why.replay", replayed)
    with pytest.raises(ConfigError, match=r"--update 1: no row of this update of .* has a gradient, as with equal"):
        why(run, 1)
    rows["one"] = RowEffect(3, {})
    about, _ = why(run, 1)
    assert about["differences"] == ["metrics.jsonl, update 1: no whole record"]
