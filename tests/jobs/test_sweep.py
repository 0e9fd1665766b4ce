"""A sweep from its command line to its table: planning, resuming, failed jobs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from postrain.cli.main import start
from postrain.jobs.sweep import sweep_lock
from postrain.report.sweep_results import read_sweep
from postrain.report.sweep_summary import markdown, result
from postrain.runs.folder import RunFolder
from tests.jobs.sweeps import Program, finish, sweep
from tests.training_runs import CONF

GRID = ("-m", "method=ppo", "method.kl_coef=0.1,0.4", "seed=0,1", "report=false")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished sweep of two coefficients and two seeds."""
    home = tmp_path_factory.mktemp("sweep")
    program = Program()
    assert sweep(program, *GRID, f"paths.sweeps={home}", "report=true", launcher="basic") == 0
    (folder,) = home.glob("multirun/*")
    return folder, program


def test_every_job_has_a_separate_folder(done):
    folder, program = done
    names = ["kl_coef=0.1 seed=0", "kl_coef=0.1 seed=1", "kl_coef=0.4 seed=0", "kl_coef=0.4 seed=1"]
    assert program.ran == names
    jobs = json.loads((folder / "jobs.json").read_text())
    assert [job["label"] for job in jobs] == names
    assert [job["settings"] for job in jobs] == [{"method.kl_coef": value} for value in (0.1, 0.1, 0.4, 0.4)]
    assert sorted(path.name for path in (folder / "jobs").iterdir()) == [job["folder"][5:] for job in jobs]
    assert len({job["hash"] for job in jobs}) == 4


def test_the_table_has_means_and_intervals_over_seeds(done):
    study = read_sweep(done[0])
    assert (study.metric, study.direction) == ("eval/reward/total", "max")
    first, second = study.cells
    # Rewards 0.90 and 0.91: mean 0.905, standard error 0.005, t(1) = 12.7062.
    value = first.values["eval/reward/total"]
    assert (value.value, value.low) == pytest.approx((0.905, 0.905 - 12.7062 * 0.005))
    assert (first.n, second.n, study.best, study.failed) == (2, 2, first, ())
    assert second.values["eval/reward/total"].value == pytest.approx(0.605)
    assert "| **0.1** | **0.91 [0.84, 0.97]** |" in markdown(study)
    assert (done[0] / "table.md").read_text() == markdown(study)
    assert json.loads((done[0] / "table.json").read_text())[0]["best"] is True
    assert (done[0] / "report.html").is_file()
    assert json.loads((done[0] / "status.json").read_text())["status"] == "done"


def test_the_line_of_a_job_shows_the_metric_of_the_study(tmp_path, capsys):
    words = ("-m", "method=ppo", "method.kl_coef=0.25,0.6", "report=false", f"paths.sweeps={tmp_path}")
    assert sweep(Program(), *words, "sweep.metric=eval/kl/exact") == 0
    # 0.5 / 1.25 = 0.4; the run's own metric is the reward.
    assert "  eval/kl/exact 0.40\n" in capsys.readouterr().out


def test_resumed_sweep_repeats_nothing_and_more_values_add_jobs(done):
    folder, program = done
    program.ran.clear()
    assert sweep(program, f"resume={folder}", "report=false") == 0
    assert program.ran == []
    assert sweep(program, f"resume={folder}", "method.kl_coef=0.1,0.4,0.8") == 0
    assert program.ran == ["kl_coef=0.8 seed=0", "kl_coef=0.8 seed=1"]
    assert [cell.n for cell in read_sweep(folder).cells] == [2, 2, 2]


def test_failed_job_is_reported_stops_no_other_and_is_retried(tmp_path, capsys):
    program = Program()
    program.broken = {"kl_coef=0.1 seed=1"}
    assert sweep(program, *GRID, f"paths.sweeps={tmp_path}") == 1
    assert len(program.ran) == 4
    assert "failed: kl_coef=0.1 seed=1: kl_coef=0.1 seed=1 is broken" in capsys.readouterr().out
    (folder,) = tmp_path.glob("multirun/*")
    study = read_sweep(folder)
    assert [cell.n for cell in study.cells] == [1, 2]
    assert "| kl_coef=0.1 seed=1 | failed | kl_coef=0.1 seed=1 is broken |" in (folder / "table.md").read_text()
    assert json.loads((folder / "status.json").read_text())["reason"] == "1 of 4 jobs failed"
    program.ran.clear()
    program.broken.clear()
    assert sweep(program, f"resume={folder}") == 0
    assert program.ran == ["kl_coef=0.1 seed=1"]


def test_all_mistakes_are_reported_before_the_first_job(tmp_path, capsys):
    program = Program()
    words = ("-m", "method=ppo", "method.kl_coeff=0.1,0.4", "method.epochs=0,1", f"paths.sweeps={tmp_path}/none")
    assert sweep(program, *words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "error: method.epochs: expected an integer >= 1, got 0 (kl_coeff=0.1 epochs=0; kl_coeff=0.4 epochs=0)",
        "method.kl_coeff: unknown key; did you mean method.kl_coef? (in all 4 jobs)",
    ]
    assert program.ran == []
    assert not (tmp_path / "none").exists()


def test_misspelt_metrics_are_refused_before_the_first_job(tmp_path, capsys):
    program = Program()
    words = ("-m", "method=sft", "seed=0,1", "sweep.metric=eval/perplexty", "sweep.columns=[eval/kl/exct,gold/totl]")
    assert sweep(program, *words, f"paths.sweeps={tmp_path}/none") == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: sweep.metric: no run measures eval/perplexty; did you mean eval/perplexity?",
        "sweep.columns: no run measures eval/kl/exct; did you mean eval/kl/exact?",
        "sweep.columns: no run measures gold/totl; did you mean gold/total?",
    ]
    assert (program.ran, (tmp_path / "none").exists()) == ([], False)


def test_metric_of_user_code_is_not_checked(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("def score(completions):\n    return [1.0] * len(completions)\n")
    program = Program()
    words = ("method=ppo", "reward=function", "reward.function=mine.py:score", "seed=0,1", "sweep.metric=eval/kl/exct")
    assert sweep(program, "-m", *words, "paths.sweeps=sweeps") == 0
    assert program.ran == ["seed=0", "seed=1"]


def test_missing_data_file_of_one_job_is_reported_before_the_first_job(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows").mkdir()
    Path("rows/my.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    program = Program()
    assert sweep(program, "-m", "method=sft", "data.path=rows,rows/*.jsonl,no.jsonl", "paths.sweeps=none") == 2
    assert capsys.readouterr().err == "error: data.path: there is no file no.jsonl (path=no.jsonl)\n"
    assert program.ran == []


def test_missing_method_and_missing_folder_are_one_line(tmp_path, capsys):
    assert sweep(Program(), "-m", "seed=0,1", f"paths.sweeps={tmp_path}") == 2
    assert "the sweep has no method" in capsys.readouterr().err
    assert sweep(Program(), "sweep=kl_coef", f"resume={tmp_path}/no") == 2
    assert f"there is no sweep in {tmp_path}/no" in capsys.readouterr().err


def test_damaged_files_are_reported_and_the_rest_is_read(done, tmp_path):
    folder = tmp_path / "sweep"
    RunFolder.at(folder / "jobs" / "00-a")
    finish(RunFolder(folder / "jobs" / "00-a"), reward=float("nan"), kl=0.1, stopped="flat")
    (folder / "jobs.json").write_text('[{"folder": "jobs/00-a", "number": "x"}, {"folder": "jobs/01-b"}, 3]')
    (folder / "sweep.yaml").write_text("question: [half")
    study = read_sweep(folder)
    assert study.missing == (
        "sweep.yaml is damaged: the question is not known",
        "00-a: eval/reward/total is not finite in 1 of 1 jobs, so it has no mean",
    )
    assert [job.state for job in study.jobs] == ["done", "not started"]
    assert study.best is None
    assert "flat" in markdown(study)
    (folder / "jobs.json").write_text("")
    assert read_sweep(folder).missing[1] == "jobs.json is missing or damaged: the jobs are not known"


def study_of(folder, *values, metric="eval/reward/total"):
    """A finished sweep: `values` are settings with the rewards of their jobs."""
    jobs = []
    for place, (name, ends) in enumerate(values):
        for seed, value in enumerate(ends):
            home = RunFolder.at(folder / "jobs" / f"{place}{seed}")
            finish(home, reward=value, kl=0.1)
            jobs.append({"number": len(jobs), "folder": f"jobs/{place}{seed}", "settings": {"lr": name}, "seed": seed})
    (folder / "jobs.json").write_text(json.dumps(jobs))
    (folder / "sweep.yaml").write_text(f"name: mine\nmetric: {metric}\n")
    return read_sweep(folder)


def test_diverged_setting_has_no_mean_and_is_never_the_best(tmp_path):
    study = study_of(tmp_path, (0.1, [0.5, 0.6]), (0.2, [0.3, 0.2]), (0.5, [0.9, float("inf")]))
    assert study.best is study.cells[0]
    assert "eval/reward/total" not in study.cells[2].values
    assert any("eval/reward/total is not finite in 1 of 2 jobs" in line for line in study.missing)


def test_direction_follows_from_the_name_of_the_metric(tmp_path):
    study = study_of(tmp_path, (0.1, [0.5]), (0.2, [0.3]), metric="eval/kl/exact")
    assert study.direction == "min"


def test_misspelt_metric_gets_a_suggestion(tmp_path):
    study = study_of(tmp_path, (0.1, [0.5]), metric="eval/reward/totl")
    assert study.missing == (
        "no finished job has measured eval/reward/totl; did you mean eval/reward/total?; eval/reward/total decides "
        "instead",
    )


def test_running_sweep_is_not_resumed(done, capsys):
    folder, program = done
    with sweep_lock(folder):
        assert sweep(program, f"resume={folder}") == 2
    assert "another process is running the sweep" in capsys.readouterr().err


def test_folder_with_blanks_is_resumed(tmp_path):
    program, home = Program(), tmp_path / "a (1)"
    assert sweep(program, *GRID, f"paths.sweeps='{home}'") == 0
    (folder,) = home.glob("multirun/*")
    program.ran.clear()
    assert sweep(program, f"resume='{folder}'") == 0
    assert program.ran == []


def test_config_dir_reaches_the_jobs(tmp_path, capsys):
    (tmp_path / "conf/method").mkdir(parents=True)
    (tmp_path / "conf/method/mine.yaml").write_text("# @package _global_\n# Mine\ndefaults: [ppo, _self_]\n")
    program = Program()
    words = ("--config-dir", str(tmp_path / "conf"), "-m", "method=mine", "method.kl_coef=0.1,0.2", "report=false")
    assert sweep(program, *words, f"paths.sweeps={tmp_path}") == 0
    (folder,) = tmp_path.glob("multirun/*")
    program.ran.clear()
    more = (f"resume={folder}", "method.kl_coef=0.1,0.2,0.3")
    assert sweep(program, *more) == 2
    assert f"sets --config-dir={tmp_path / 'conf'}" in capsys.readouterr().err
    assert sweep(program, *more, "--config-dir", str(tmp_path / "conf")) == 0
    assert program.ran == ["kl_coef=0.3"]


def test_sweep_over_a_pipeline_checks_its_stages(tmp_path, capsys):
    program = Program()
    words = ("-m", "pipeline=rlhf", "stage.ppo.method.kl_coef=0.1,0.2", "report=false", f"paths.sweeps={tmp_path}")
    assert sweep(program, *words) == 0
    assert program.ran == ["kl_coef=0.1", "kl_coef=0.2"]
    assert sweep(program, *words, "stage.ppo.method.kl_coeff=1") == 2
    assert "stage ppo: method.kl_coeff: unknown key; did you mean method.kl_coef?" in capsys.readouterr().err


def test_evaluations_can_be_swept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = Program()
    assert sweep(program, "-m", "model=nano", "evaluation=lengths", "seed=0,1", root="evaluate") == 0
    assert program.ran == ["seed=0", "seed=1"]


def test_without_a_metric_each_setting_shows_its_own(tmp_path):
    study_of(tmp_path, (0.1, [0.5, 0.7]), metric="null")
    home = RunFolder(tmp_path / "jobs" / "00")
    home.result.write_text(json.dumps({"metric": "accuracy", "values": {"accuracy": 0.25}, "changes": {}}))
    (tmp_path / "jobs.json").write_text(
        json.dumps([{"folder": "jobs/00", "settings": {"a": 1}}, {"folder": "jobs/01", "settings": {"a": 2}}])
    )
    first, second = read_sweep(tmp_path).cells
    assert result(first) == "accuracy 0.25"
    assert result(second) == "eval reward 0 → 0.70"


@pytest.mark.parametrize("setting", ["jobs=abc", "jobs=0", "timeout=-1", "timeout=soon"])
def test_wrong_settings_of_the_launcher_are_one_line(tmp_path, capsys, setting):
    assert exit_code(("train.py", *GRID, f"hydra.launcher.{setting}", f"paths.sweeps={tmp_path}")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: hydra.launcher.{setting.partition('=')[0]}: expected ")


def exit_code(words):
    try:
        return start([*words], CONF, run=Program())
    except SystemExit as end:
        return int(end.code or 0)
