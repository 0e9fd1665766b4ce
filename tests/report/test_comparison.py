"""Comparison of runs: labels, headline table, warnings, errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from postrain.errors import ConfigError
from postrain.report import write_comparison
from postrain.report.__main__ import main
from postrain.report.comparison_page import Member, differing, efficiency_table, headline_table, labels, warnings
from postrain.report.folders import Run, read_run
from postrain.report.samples import Sample, interval
from tests.report.test_report import checked


def member(name: str, fingerprint: str | None = "f", **metrics: tuple[float, float]) -> Member:
    """A finished run with the first and the last value of some metrics."""
    curves = {name.replace("__", "/"): ([0, 9], list(ends)) for name, ends in metrics.items()}
    data = {"fingerprint": fingerprint, "source": f"source of {name}"} if fingerprint else {}
    run = Run(
        path=Path(name), status={"status": "done"}, manifest={"data": data}, metrics=curves, updates=9, seconds=1.0
    )
    return Member(name, 0, run, [])


def settings_of(path: Path, **settings: Any) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["config"] = settings
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def three(run_maker: Callable[..., Path], tmp_path: Path) -> list[Path]:
    """Two PPO runs and one of SFT."""
    first = run_maker(tmp_path / "first", updates=20, samples=9, few=True)
    paths = [first, *(tmp_path / name / "ppo" / "nano" / "2026-01-02_03-04-05-0123abcd" for name in ("b", "c"))]
    for path in paths[1:]:
        shutil.copytree(first, path)
    ppo = {"_target_": "postrain.methods.ppo.PPO"}
    settings_of(paths[0], seed=0, name=None, method={**ppo, "kl_coef": 0.02}, paths={"output": "a"})
    settings_of(paths[1], seed=1, name=None, method={**ppo, "kl_coef": 0.5}, paths={"output": "b"})
    settings_of(paths[2], seed=0, name="mine", method={"_target_": "postrain.methods.sft.SFT"})
    return paths


def test_labels_have_the_settings_that_differ(three: list[Path]) -> None:
    runs = [read_run(path) for path in three]
    assert labels(runs) == ["ppo kl_coef=0.02 seed=0", "ppo kl_coef=0.5 seed=1", "mine"]
    assert labels(runs[:1]) == ["ppo"]
    assert differing(runs[:2]) == {"method.kl_coef": ["0.02", "0.5"], "seed": ["0", "1"]}
    # Equal runs differ in their folder only.
    assert labels([runs[0], runs[0]]) == ["ppo 2026-01-02_03-04-05-0123abcd"] * 2


def test_label_names_the_class_of_a_component_that_differs(three: list[Path]) -> None:
    method = {"_target_": "postrain.methods.sft.SFT"}
    settings_of(three[0], method=method, adapter={"_target_": "postrain.models.adapters.NoAdapter"})
    settings_of(three[1], method=method, adapter={"_target_": "postrain.models.adapters.LoRA", "r": 16, "alpha": 32})
    assert labels([read_run(path) for path in three[:2]]) == ["sft adapter=none", "sft adapter=LoRA"]


def test_headline_table_marks_the_best_of_each_metric() -> None:
    members = [
        member("a", gold__total=(0.1, 0.5), eval__perplexity=(9, 3)),
        member("b", gold__total=(0.1, 0.4), eval__perplexity=(9, 2)),
        member("c", gold__total=(0.1, 0.3)),
    ]
    columns, rows = headline_table(members, ["gold/total", "eval/perplexity"])
    assert columns == ["run", "gold", "eval perplexity"]
    assert [[(cell.text, cell.best) for cell in cells] for _, cells in rows] == [
        [("0.50", True), ("3.00", False)],
        [("0.40", False), ("2.00", True)],
        [("0.30", False), ("–", False)],
    ]
    assert rows[0][1][0].small == "from 0.10"


def test_runs_on_different_data_have_no_best_value_and_a_warning() -> None:
    members = [member("a", "f", gold__total=(0, 1)), member("b", "g", gold__total=(0, 2)), member("c", None)]
    _, rows = headline_table(members, ["gold/total"])
    assert not any(cell.best for _, cells in rows for cell in cells)
    found = warnings(members)
    assert found[0].startswith("These runs used different data (a: source of a; b: source of b; c: unknown)")
    assert found[1] == "The training data of c is not known; the numbers may not be comparable."
    assert found[2] == "Without metrics: c."


def test_efficiency_table_has_a_column_per_cost() -> None:
    one, other = member("full"), member("lora")
    one.run.result.update(trainable=1_064_000, parameters=1_064_000)
    other.run.result.update(trainable=53_200, parameters=1_117_200)
    columns, rows = efficiency_table([one, other])
    assert columns == ["run", "trainable parameters", "all parameters", "trainable share", "total time"]
    # 53,200 of 1,117,200 are 4.76 %.
    assert [cell.text for cell in rows[1][1]] == ["53.2 thousand", "1.12 million", "4.76 %", "1.0 s"]


def test_interval_is_that_of_the_sample_scores() -> None:
    def samples(*values: float) -> list[Sample]:
        return [Sample(0, row, "", "", {"gold/total": value}) for row, value in enumerate(values)]

    # Four of eight, Wilson: 1.96 / (1 + 3.8415 / 8) * sqrt(0.25 / 8 + 3.8415 / 256) = 0.2848.
    found = interval(samples(*[0.0, 1.0] * 4), "gold/total", 0.5)
    assert found is not None
    assert (found[0].low, found[0].high, found[1]) == pytest.approx((0.2152, 0.7848, 8), abs=1e-4)
    # 0.4 and 0.6, four times each: variance 8 / 7 * 0.01, half 2.3646 * sqrt(0.08 / 7 / 8) = 0.08937, on the logit
    # scale 0.08937 / 0.25 = 0.3575: 1 / (1 + e^-0.3575) = 0.5884.
    around = interval(samples(*[0.4, 0.6] * 4), "gold/total", 0.5)
    assert around is not None
    assert around[0].high == pytest.approx(0.5884, abs=1e-4)
    # All right is not certain to stay so.
    certain = interval(samples(*[1.0] * 8), "gold/total", 1.0)
    assert certain is not None
    assert certain[0].low < 0.7
    assert interval(samples(0.0, 1.0), "gold/total", 0.5) is None
    # A value outside the interval: the metric is of other completions, or on another scale.
    assert interval(samples(*[0.4, 0.6] * 4), "gold/total", 5.0) is None


def test_comparison_page_has_all_sections(
    three: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A repeated folder counts once.
    monkeypatch.setattr("sys.argv", ["report", *map(str, [*three, three[0]]), "--output", str(tmp_path / "out")])
    assert main() == 0
    page = Path(capsys.readouterr().out.strip())
    text = checked(page.read_text(encoding="utf-8"))
    for wanted in (
        "3 runs",
        "ppo kl_coef=0.02 seed=0",
        "../b/ppo/nano",
        "Learning curves",
        "The same prompts",
        "method.kl_coef",
    ):
        assert wanted in text, wanted
    assert "used different data" not in text
    assert sorted(path.name for path in page.parent.iterdir()) == [
        "evaluation_stats.json", "model_comparison.png", "report.html", "sample_responses.json",
    ]  # fmt: skip
    models = json.loads((page.parent / "evaluation_stats.json").read_text())["models"]
    assert [one["name"] for one in models] == labels([read_run(path) for path in three])


def test_comparison_survives_a_run_with_damaged_files(three: list[Path], tmp_path: Path) -> None:
    (three[0] / "metrics.jsonl").write_text('{"update": 1, "lo')
    (three[0] / "manifest.json").unlink()
    (three[1] / "samples.jsonl").write_text("null\n[]\n")
    text = checked(write_comparison(three[:2], tmp_path / "out").read_text(encoding="utf-8"))
    assert "Without metrics: " in text
    assert "metrics.jsonl: 1 damaged line left out" in text
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "status.json").write_text("{}")
    checked(write_comparison([empty, three[0]], tmp_path / "out").read_text(encoding="utf-8"))


def test_comparison_names_a_folder_that_is_not_a_run(three: list[Path], tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "notes.txt").write_text("")
    with pytest.raises(ConfigError, match=r"x is not the folder of a run, .* \(it holds: notes.txt\)"):
        write_comparison([three[0], tmp_path / "x"], tmp_path / "out")
