"""Sweeps with successive halving: all settings for a few updates, the best for more, continued by forks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from postrain.jobs.graph import Job
from postrain.jobs.launchers import Ended
from postrain.jobs.session import TRAIN, execute
from postrain.report.sweep_results import read_sweep
from postrain.runs.folder import RunFolder
from tests.jobs.sweeps import Program, sweep
from tests.training_runs import SMALL, composed, records, shallow


class TrainsInProcess:
    """A launcher that trains in this process."""

    jobs = 1

    def __init__(self) -> None:
        self.ran: list[str] = []

    def __call__(self, jobs: Sequence[Job], folder: Path, ended: Ended) -> None:
        for job in jobs:
            if not (folder / job.folder / "result.json").exists():
                self.ran.append(job.name)
                execute(TRAIN, composed(job.overrides), overrides=job.overrides, directory=folder / job.folder)
                ended(job)


def test_the_best_setting_continues_where_its_last_run_ended(tmp_path, monkeypatch, capsys) -> None:
    launcher = TrainsInProcess()
    monkeypatch.setattr("postrain.jobs.sweep.launcher_of", lambda *_: launcher)
    rates = "method.learning_rate=1e-6,2e-3,1e-5"
    words = [*SMALL, *shallow("sft"), rates, "method.schedule=constant", "method.warmup=0", "evaluation.completions=0"]
    words += [f"paths.sweeps={tmp_path}", "sweep.halving={updates:[1,3],keep:0.3}", "sweep.metric=eval/loss"]
    assert (
        sweep(Program(), "-m", *(word for word in words if not word.startswith("method.updates")), launcher="local")
        == 0
    )
    names = [f"learning_rate={rate} updates={updates}" for updates, rates in RUNGS.items() for rate in rates]
    assert launcher.ran == names
    said = capsys.readouterr().out
    assert "after 1 updates 1 of 3 settings continue; left out: learning_rate=1e-06, learning_rate=1e-05" in said
    (path,) = tmp_path.glob("multirun/*")
    found = read_sweep(path)
    assert [(cell.settings["method.updates"], cell.n) for cell in found.cells] == [(1, 1), (3, 1), (1, 1)]
    assert found.best is found.cells[1]
    # The last run of the best setting has all its updates, each made once.
    best = RunFolder(path / json.loads((path / "jobs.json").read_text())[1]["folder"])
    assert [record["update"] for record in records(best)] == [0, 1, 2, 3]
    assert json.loads(best.fork.read_text())["update"] == 1
    launcher.ran.clear()
    assert sweep(Program(), f"resume={path}", "report=false", launcher="local") == 0
    assert launcher.ran == []


class StopsEarly(TrainsInProcess):
    """A launcher whose jobs made no update when they ended."""

    def __call__(self, jobs: Sequence[Job], folder: Path, ended: Ended) -> None:
        super().__call__(jobs, folder, ended)
        for job in jobs:
            RunFolder(folder / job.folder).metrics.rewind(0)


def test_setting_that_stopped_early_keeps_its_result_and_does_not_continue(tmp_path, monkeypatch, capsys) -> None:
    launcher = StopsEarly()
    monkeypatch.setattr("postrain.jobs.sweep.launcher_of", lambda *_: launcher)
    words = [word for word in (*SMALL, *shallow("sft")) if not word.startswith("method.updates")]
    words += ["method.learning_rate=1e-6,2e-3", "evaluation.completions=0", f"paths.sweeps={tmp_path}"]
    assert (
        sweep(Program(), "-m", *words, "sweep.halving.updates=[1,3]", "sweep.metric=eval/loss", launcher="local") == 0
    )
    assert launcher.ran == [f"learning_rate={rate} updates=1" for rate in ("1e-06", "0.002")]
    assert "learning_rate=0.002 updates=1 stopped after update 0 and does not continue" in capsys.readouterr().out
    (path,) = tmp_path.glob("multirun/*")
    assert [cell.n for cell in read_sweep(path).cells] == [1, 1]


RUNGS = {1: ["1e-06", "0.002", "1e-05"], 3: ["0.002"]}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sweep.halving.updates=[9]"], "sweep.halving.updates: expected increasing numbers, such as [10, 30, 90]"),
        (["sweep.halving.updates=[9,3]"], "sweep.halving.updates: expected increasing numbers"),
        (["sweep.halving.updates=[3,9]", "method.updates=3,4"], "sweep.halving: sets method.updates itself"),
        (["sweep.halving.updates=[3,9]", "seed=0,1", "sweep.sequential.max_seeds=4"], "sweep.halving: not with search"),
    ],
)
def test_a_study_that_cannot_be_halved_is_one_line(words, message, tmp_path, capsys) -> None:
    given = ["-m", "method=ppo", "method.kl_coef=0.1,0.4", f"paths.sweeps={tmp_path}", *words]
    assert sweep(Program(), *given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
