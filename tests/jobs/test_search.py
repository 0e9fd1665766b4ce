"""A hyperparameter search: runs the trials that Optuna proposes, records their values, resumes."""

from __future__ import annotations

import json
import logging
from typing import Annotated

import optuna
import pytest
from annotated_types import Ge

from postrain.errors import ConfigError
from postrain.jobs.search import distribution, spaces_of, with_fractions
from postrain.jobs.study import Study
from postrain.jsonl import read_json
from postrain.report.sweep_results import read_sweep
from tests.jobs.sweeps import Program, sweep

SEARCH = (
    "sweep=search",
    "sweep.search={method.kl_coef: {low: 0, high: 1}}",
    "sweep.metric=eval/reward/total",
    "report=false",
)


@pytest.fixture(autouse=True)
def _quiet():
    yield
    logging.getLogger("optuna").setLevel(logging.NOTSET)


def test_trials_run_and_resume_with_their_values(tmp_path, capsys):
    program = Program()
    assert sweep(program, *SEARCH, "sweep.trials=3", f"paths.sweeps={tmp_path}") == 0
    (folder,) = tmp_path.glob("search/*")
    assert len(program.ran) == 3
    found = optuna.load_study(study_name="search", storage=f"sqlite:///{folder}/search.db")
    assert [trial.value for trial in found.trials] == [
        pytest.approx(1 - trial.params["method.kl_coef"]) for trial in found.trials
    ]
    assert read_sweep(folder).best.settings == found.best_params  # type: ignore[union-attr]
    first = [trial.params for trial in found.trials]
    program.ran.clear()
    assert sweep(program, f"resume={folder}", "sweep.trials=5") == 0
    assert len(program.ran) == 2
    again = optuna.load_study(study_name="search", storage=f"sqlite:///{folder}/search.db")
    assert [trial.params for trial in again.trials][:3] == first
    assert len(json.loads((folder / "jobs.json").read_text())) == 5
    assert sweep(program, f"resume={folder}", "sweep.search={method.kl_coef: [0.1, 0.2]}", "sweep.trials=6") == 2
    assert "sweep.search: a key has another kind of space than in the earlier trials" in capsys.readouterr().err


def test_failed_trial_does_not_stop_the_search(tmp_path):
    class Half(Program):
        def __call__(self, config, words, group, place):
            if len(self.ran) == 1:
                self.broken.add(config.name)
            return super().__call__(config, words, group, place)

    assert sweep(Half(), *SEARCH, "sweep.trials=3", f"paths.sweeps={tmp_path}") == 1
    (folder,) = tmp_path.glob("search/*")
    found = optuna.load_study(study_name="search", storage=f"sqlite:///{folder}/search.db")
    assert [trial.state.name for trial in found.trials] == ["COMPLETE", "FAIL", "COMPLETE"]


def test_search_without_its_metric_uses_that_of_the_jobs(tmp_path):
    # The jobs measure only a reward, which is maximized; a study that minimizes gets it with the opposite sign.
    for metric, direction, sign in (("gold/total", "max", 1), ("eval/perplexity", "min", -1)):
        home = tmp_path / direction
        words = (*SEARCH[:2], f"sweep.metric={metric}", f"sweep.direction={direction}", "report=false")
        assert sweep(Program(), *words, "sweep.trials=2", f"paths.sweeps={home}") == 0
        (folder,) = home.glob("search/*")
        found = optuna.load_study(study_name="search", storage=f"sqlite:///{folder}/search.db")
        assert [trial.value for trial in found.trials] == [
            pytest.approx(sign * (1 - trial.params["method.kl_coef"])) for trial in found.trials
        ]


def test_a_trial_without_the_metric_that_others_measured_has_failed(tmp_path):
    class Half(Program):
        def __call__(self, config, words, group, place):
            value = super().__call__(config, words, group, place)
            if len(self.ran) == 2:
                result = read_json(place / "result.json")
                changes = {"gold/total": result["changes"]["eval/reward/total"]}
                (place / "result.json").write_text(json.dumps({**result, "metric": "gold/total", "changes": changes}))
            return value

    assert sweep(Half(), *SEARCH, "sweep.trials=3", f"paths.sweeps={tmp_path}") == 0
    (folder,) = tmp_path.glob("search/*")
    found = optuna.load_study(study_name="search", storage=f"sqlite:///{folder}/search.db")
    assert [trial.state.name for trial in found.trials] == ["COMPLETE", "FAIL", "COMPLETE"]


def test_repeated_proposal_runs_once(tmp_path):
    program = Program()
    words = ("sweep=search", "sweep.search={method.kl_coef: [0.1, 0.2]}", *SEARCH[2:], "sweep.trials=4")
    assert sweep(program, *words, f"paths.sweeps={tmp_path}") == 0
    (folder,) = tmp_path.glob("search/*")
    assert len(program.ran) == len(set(program.ran)) <= 2
    assert [cell.n for cell in read_sweep(folder).cells] == [1] * len(program.ran)


def test_integer_bounds_of_a_number_try_fractions(capsys):
    spaces = {"a": {"low": 0, "high": 1}, "b": {"low": 1, "high": 4, "log": True}, "c": {"low": 0, "high": 2}, "d": [1]}
    types = {"a": float, "b": Annotated[int, Ge(1)]}
    ready = spaces_of(with_fractions(Study(search=spaces), types))
    kinds = optuna.distributions
    assert ready["a"] == kinds.FloatDistribution(0.0, 1.0)
    assert ready["b"] == kinds.IntDistribution(1, 4, log=True)
    assert ready["c"] == kinds.IntDistribution(0, 2)
    assert capsys.readouterr().out == "sweep.search.c: integers are tried; for fractions write low: 0.0\n"


def test_distribution_of_each_kind_of_space():
    kinds = optuna.distributions
    assert distribution("k", {"low": 1, "high": 8, "log": True}) == kinds.IntDistribution(1, 8, log=True)
    assert distribution("k", {"low": 0, "high": 1.0}) == kinds.FloatDistribution(0.0, 1.0)
    assert distribution("k", ["a", "b"]) == kinds.CategoricalDistribution(["a", "b"])
    for space, message in (
        ({"low": 1}, "expected a list of choices"),
        ({"low": 2, "high": 1}, "low < high, got 2 and 1"),
        ({"low": 0.0, "high": 1.0, "log": True}, "sweep.search.k: .*0.0"),
    ):
        with pytest.raises(ConfigError, match=message):
            distribution("k", space)
