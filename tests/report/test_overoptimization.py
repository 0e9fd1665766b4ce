"""Curves of proxy and gold reward from run folders, and the peak of the gold score."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from postrain.errors import ConfigError
from postrain.report.overoptimization import (
    Curve,
    Point,
    of_run,
    of_samples,
    overoptimization,
    rows,
)


def lines(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def measured(update: int, kl: float, proxy: float, gold: float) -> dict:
    return {
        "update": update,
        "eval/kl/exact": kl,
        "eval/completion/length": 20.0,
        "eval/reward/total": proxy,
        "gold/total": gold,
    }


def run(folder: Path) -> Path:
    records = [measured(0, 0, 0, 0.5), {"update": 1, "loss": 2.0}, measured(5, 0.2, 1, 0.8), measured(10, 0.8, 3, 0.6)]
    lines(folder / "metrics.jsonl", records)
    return folder


def generation(folder: Path) -> Path:
    # Rewards of four samples: pairs are (1, 3) and (0, 2), whose second sample wins; of all four the second wins.
    answer = {"completions": ["a", "b", "c", "d"], "rewards": [1, 3, 0, 2], "gold": [0.1, 0.4, 0.5, 0.8]}
    lines(folder / "completions.jsonl", [answer])
    return folder


def test_curve_of_a_run_has_its_evaluations(tmp_path):
    """The exact KL is per token: 0.2 nats over 20 tokens are 4 nats/completion."""
    found = of_run("ppo", run(tmp_path))
    assert found.points == (Point(0, 0, 0.5), Point(4.0, 1, 0.8), Point(16.0, 3, 0.6))
    assert found.gold_peak() == Point(4.0, 1, 0.8)


def test_small_fall_of_gold_is_not_overoptimization():
    assert Curve("x", (Point(0, 0, 0.5), Point(1, 1, 0.81), Point(2, 2, 0.80))).gold_peak() is None
    assert Curve("x", (Point(0, 0, 0.5), Point(1, 1, 0.6))).gold_peak() is None


def test_best_of_n_compares_consecutive_completions(tmp_path):
    found = of_samples("best", generation(tmp_path)).points
    assert [point.proxy for point in found] == [1.5, 2.5, 3]
    assert [point.gold for point in found] == pytest.approx([0.45, 0.6, 0.4])
    assert found[2].kl == pytest.approx(1.3863 - 0.75, abs=1e-4)  # ln 4 - 3/4


def test_overoptimization_writes_figure_table_and_json(tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    runs = {"ppo": {"no_kl": {"folder": str(run(tmp_path / "run"))}}}
    overoptimization(folder=str(out), runs=runs, samples={"folder": str(generation(tmp_path / "samples"))})
    assert sorted(path.suffix for path in out.iterdir()) == [".json", ".md", ".png"]
    assert json.loads((out / "overoptimization.json").read_text())[0]["points"][1]["kl"] == 4.0
    # The peak is at sqrt(4) = 2, the end at sqrt(16) = 4.
    assert "| ppo no_kl | 0.00 → 3.00 | 0.50 → 0.80 → 0.60 | 4.0 | 2.0 |" in (out / "overoptimization.md").read_text()
    assert "best of n" in capsys.readouterr().out


def test_curve_without_a_fall_has_no_peak_distance():
    flat = Curve("grpo", (Point(0, 0, 0.5), Point(math.pi**2, 1, 0.6)))
    assert rows([flat]) == [("grpo", "0.00 → 1.00", "0.50 → 0.60 → 0.60", "3.1", "no fall")]


def test_run_without_gold_is_an_error(tmp_path):
    lines(tmp_path / "metrics.jsonl", [{"update": 0, "eval/reward/total": 1.0}])
    with pytest.raises(ConfigError, match="no evaluation with"):
        of_run("ppo", tmp_path)
