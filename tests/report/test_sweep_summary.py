"""Sentences of a sweep: the best setting against the next over shared seeds, and undecided differences."""

from __future__ import annotations

import json
from math import inf
from pathlib import Path

import pytest

from postrain.report.sweep_results import read_sweep
from postrain.report.sweep_summary import markdown, paired, rows, sentences
from tests.report.sweeps import GOLD, KL, make_sweep


def test_difference_is_paired_by_seed() -> None:
    # 0.3 and 0.1 over seeds 1 and 2: mean 0.2, standard error 0.1, 12.7062 of them; a reward has no bounds.
    found, n = paired({0: 5.0, 1: 1.3, 2: 1.1}, {1: 1.0, 2: 1.0, 3: 9.0}, "eval/reward/total")
    assert (found.value, found.low, n) == (pytest.approx(0.2), pytest.approx(0.2 - 1.27062), 2)
    # Two shares are at most 1 apart.
    found, _ = paired({1: 1.0, 2: 0.6}, {1: 0.1, 2: 0.1}, "eval/accuracy")
    assert -1 < found.low < 0.7 < found.high < 1
    assert paired({1: 1.0}, {2: 1.0}, GOLD)[1] == 0


@pytest.mark.parametrize(
    ("seeds", "gap", "decision"),
    [
        # The paired differences of even seeds are the gap, those of odd ones 0.01 more: mean 0.305, standard error
        # 0.005, 12.7062 of them on either side, kept within [-1, 1].
        ((0, 1), 0.3, "Paired difference over 2 shared seeds: 0.31 [0.24, 0.37]: kl_coef=0.5 is better."),
        ((0, 1), 0.0, "Paired difference over 2 shared seeds: 0.005 [-0.058, 0.068]: undecided, it may be chance."),
        (
            (0,),
            0.3,
            "Paired difference over 1 shared seed: 0.30. One seed cannot separate it from chance: undecided.",
        ),
    ],
)
def test_best_setting_is_compared_with_the_next(
    tmp_path: Path, seeds: tuple[int, ...], gap: float, decision: str
) -> None:
    def measured(cell: int, seed: int) -> tuple[float, float]:
        return ((0.1, 0.3 + gap + 0.01 * (seed % 2), 0.3)[cell] + 0.2 * seed, 0.5)

    path = make_sweep(tmp_path / "kl", values=(0.0, 0.5, 1.0), seeds=seeds, measured=measured)
    lines = sentences(read_sweep(path))
    assert lines[0].startswith("kl_coef=0.5 has the highest gold, ")
    assert "; next is kl_coef=1.0 with " in lines[0]
    assert lines[1] == decision


def test_sentences_compare_every_metric_of_the_question(tmp_path: Path) -> None:
    path = make_sweep(
        tmp_path / "kl",
        values=(0.0, 0.5, 1.0),
        measured=lambda cell, seed: (0.9 - 0.1 * cell, (3.0 + 0.01 * seed, 2.0, 1.0)[cell]),
    )
    lines = sentences(read_sweep(path))
    gap = "Paired difference over 2 shared seeds: 1.00 [0.94, 1.07]"
    assert f"Eval kl: 3.00 [2.94, 3.07] against 2.00. {gap}: kl_coef=0.0 has more." in lines
    assert "From kl_coef=0.0 to kl_coef=1.0: gold -0.20, eval kl -2.00 [-2.07, -1.94]." in lines


def test_equal_differences_of_all_seeds_are_undecided(tmp_path: Path) -> None:
    # One item of 32 more in both seeds, and 0.1 more than the untrained model.
    path = make_sweep(tmp_path / "kl", measured=lambda cell, seed: (0.2 - 0.03125 * cell, 0.5))
    unknown = "It is the same in all seeds, so the spread between seeds is unknown: undecided."
    lines = sentences(read_sweep(path))
    assert lines[1] == f"Paired difference over 2 shared seeds: 0.031. {unknown}"
    assert lines[-1] == f"Untrained: gold 0.10; kl_coef=0.0 changes it by 0.10. {unknown}"


def test_better_setting_is_that_of_the_paired_difference(tmp_path: Path) -> None:
    # Seed 3 of the second setting failed. Means 0.62 and 0.61; over seeds 0 to 2 the gaps are -0.1, -0.095, -0.1.
    values = ((0.5, 0.515, 0.52, 0.95), (0.6, 0.61, 0.62, 0.0))
    path = make_sweep(tmp_path / "kl", seeds=range(4), measured=lambda cell, seed: (values[cell][seed], 0.5))
    (path / "jobs/07-abcd/status.json").write_text(json.dumps({"status": "failed"}))
    study = read_sweep(path)
    assert [cell.label for cell in study.ranked] == ["kl_coef=0.0", "kl_coef=0.5"]
    assert sentences(study)[1] == (
        "Paired difference over 3 shared seeds: -0.098 [-0.11, -0.091]: kl_coef=0.5 is better over them; kl_coef=0.0 "
        "is first only by the mean of all its seeds."
    )


def test_sweep_of_a_kl_penalty_without_a_file_reports_the_kl(tmp_path: Path) -> None:
    path = make_sweep(tmp_path / "kl", metric=None, plot=None)
    assert read_sweep(path).quantities == (GOLD, KL)
    other = make_sweep(tmp_path / "lr", key="method.learning_rate", metric=None, plot=None)
    assert read_sweep(other).quantities == (GOLD,)


def test_untrained_model_has_a_row_and_a_comparison(tmp_path: Path) -> None:
    # make_sweep starts every job at gold 0.1 and KL 0.
    path = make_sweep(tmp_path / "kl", measured=lambda cell, seed: (0.05 - 0.01 * cell + 0.001 * seed, 1.0))
    study = read_sweep(path)
    (before,) = study.untrained
    assert (before.label, before.n, before.values[GOLD].value, before.values[KL].value) == ("untrained", 2, 0.1, 0)
    columns, lines = rows(study)
    assert lines[0] == (False, ["untrained", "0.10", "0", "2", ""])
    assert len(columns) == len(lines[0][1])
    assert "| untrained | 0.10 | 0 | 2 |  |" in markdown(study)
    assert sentences(study)[-1] == (
        "Untrained: gold 0.10; kl_coef=0.0 changes it by -0.050 [-0.056, -0.043]: no setting is better than the "
        "untrained model."
    )


def test_change_of_the_untrained_model_around_0_is_undecided(tmp_path: Path) -> None:
    # Changes of 0.2, -0.08, -0.14: mean -0.007, standard error 0.105, 4.30265 of them, within [-1, 1].
    path = make_sweep(
        tmp_path / "kl", seeds=range(3), measured=lambda cell, seed: ((0.3, 0.02, -0.04)[seed] - 0.1 * cell, 1.0)
    )
    assert sentences(read_sweep(path))[-1].endswith("[-0.43, 0.42]: undecided, it may be chance.")


def test_settings_of_different_models_have_separate_untrained_rows(tmp_path: Path) -> None:
    path = make_sweep(tmp_path / "models", key="model", values=("nano", "large"), seeds=(0,))
    result = path / "jobs/01-abcd/result.json"
    found = json.loads(result.read_text())
    result.write_text(json.dumps({**found, "changes": {**found["changes"], GOLD: [0.3, 0.4]}}))
    labels = [cell.label for cell in read_sweep(path).untrained]
    assert labels == ["untrained model=nano", "untrained model=large"]


def test_untrained_row_leaves_out_metrics_that_differ_before_training(tmp_path: Path) -> None:
    # The loss at update 0 depends on the method: ln 2 for DPO, 0.5 for KTO.
    path = make_sweep(tmp_path / "methods", key="method", values=("dpo", "kto", "ipo"), seeds=(0,))
    for index, loss in enumerate((0.69, 0.5, 0.69)):
        result = path / f"jobs/{index:02}-abcd/result.json"
        found = json.loads(result.read_text())
        result.write_text(json.dumps({**found, "changes": {**found["changes"], "eval/loss": [loss, 0.1]}}))
    (before,) = read_sweep(path).untrained
    assert "eval/loss" not in before.values
    assert before.values[GOLD].value == 0.1


@pytest.mark.parametrize(("named", "listed"), [("eval/reward/total", True), (None, False)])
def test_sweep_without_the_named_metric_is_decided_by_the_metric_of_its_jobs(
    tmp_path: Path, named: str | None, listed: bool
) -> None:
    # The jobs measured gold and KL; their deciding metric is gold.
    study = read_sweep(make_sweep(tmp_path / "kl", metric=named, direction=None))
    assert (study.metric, study.direction) == (GOLD, "max")
    assert study.best is study.cells[0]
    line = "no finished job has measured eval/reward/total; gold/total decides instead"
    assert any(line.partition(";")[0] in one for one in study.missing) == listed
    assert sentences(study)


def test_sweep_over_seeds_alone_is_one_setting_of_all_seeds(tmp_path: Path) -> None:
    path = make_sweep(tmp_path / "seeds", values=(0.0,))
    jobs = json.loads((path / "jobs.json").read_text())
    (path / "jobs.json").write_text(
        json.dumps([{**job, "label": f"seed={job['seed']}", "settings": {}} for job in jobs])
    )
    study = read_sweep(path)
    assert [cell.label for cell in study.cells] == ["all seeds"]
    assert sentences(study)[0].startswith("all seeds has gold 0.51")


def test_jobs_without_a_common_metric_get_a_line_with_the_remedy(tmp_path: Path) -> None:
    path = make_sweep(tmp_path / "reward", key="reward", values=("a", "b"), metric=None, plot=None)
    for job in (path / "jobs").iterdir():
        result = {"metric": "eval/reward/total", "direction": "max", "changes": {"eval/reward/total": [0.1, 0.2]}}
        (job / "result.json").write_text(json.dumps(result))
    assert sentences(read_sweep(path)) == [
        "No metric is common to all settings: the reward varies. Choose one with sweep.metric=NAME."
    ]


def test_single_setting_is_reported_with_its_interval(tmp_path: Path) -> None:
    lines = sentences(read_sweep(make_sweep(tmp_path / "kl", values=(0.5,))))
    assert lines[0].startswith("kl_coef=0.5 has gold 0.51 [")
    assert "nothing to compare" in lines[0]


def test_collapsed_setting_is_named_in_table_and_answer(tmp_path: Path) -> None:
    path = make_sweep(tmp_path / "kl")
    result = path / "jobs/01-abcd/result.json"
    found = json.loads(result.read_text())
    found["changes"] |= {"eval/completion/distinct": [1.0, 0.03], "eval/completion/one_word": [0.0, 0.98]}
    result.write_text(json.dumps(found))
    study = read_sweep(path)
    columns, lines = rows(study)
    assert [row[columns.index("note")] for _, row in lines] == ["", "collapsed in 1 of 2", ""]
    assert sentences(study)[-1] == (
        "kl_coef=0.0 collapsed in 1 of 2 jobs: 3% of the completions are different (100% before training), 98% have at "
        "most one word (0% before training). Its gold does not measure useful text."
    )


def test_interval_over_seeds_stays_within_the_bounds_of_its_metric(tmp_path: Path) -> None:
    path = make_sweep(tmp_path / "kl", measured=lambda cell, seed: (0.99 - 0.2 * seed, 0.01 + seed))
    for cell in read_sweep(path).cells:
        assert 0 < cell.values[KL].low < cell.values[KL].value < cell.values[KL].high < inf
        assert 0 < cell.values[GOLD].low < cell.values[GOLD].high < 1


def test_timed_out_job_is_counted_in_its_row(tmp_path: Path) -> None:
    path = make_sweep(tmp_path / "kl")
    status = {"status": "failed", "reason": "timed out after 60 s (hydra.launcher.timeout)", "seconds": 60.0}
    (path / "jobs/01-abcd/status.json").write_text(json.dumps(status))
    columns, lines = rows(read_sweep(path))
    assert [row[columns.index("n")] for _, row in lines] == ["2", "1 of 2, 1 timed out", "2"]
    assert "| kl_coef=0.0 seed=1 | failed | timed out after 60 s (hydra.launcher.timeout) |" in markdown(
        read_sweep(path)
    )
