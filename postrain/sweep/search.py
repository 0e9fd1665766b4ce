"""A search by Optuna (an extra): settings that its TPE sampler proposes, told how they did, resumable from search.db.

Leaves out pruning: a hopeless job ends itself (callbacks/hopeless.py) and is told of like any other.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from postrain.jsonl import number, read_json
from postrain.sweep.plan import Job, Planner, Setting
from postrain.sweep.study import word
from postrain.types import ConfigError

if TYPE_CHECKING:
    from postrain.sweep.runner import Sweep

DATABASE = "search.db"


def search(sweep: Sweep, planner: Planner) -> list[Job]:
    """Runs the trials that are still to do, as many at once as the launcher has places; all jobs there are then."""
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError('sweep.search: Optuna is not installed; run `pip install "postrain[search]"`')
    if sweep.study.metric is None or sweep.study.direction is None:
        raise ConfigError(
            "sweep.metric, sweep.direction: a search needs both, as in metric: gold/total, direction: max"
        )
    optuna: Any = importlib.import_module("optuna")  # an extra
    logging.getLogger("optuna").setLevel(logging.WARNING)
    space = {key: distribution(optuna.distributions, key, said) for key, said in sweep.study.search.items()}
    storage = f"sqlite:///{sweep.folder / DATABASE}"
    study = optuna.create_study(
        study_name=sweep.name,
        storage=storage,
        load_if_exists=True,
        direction="maximize" if sweep.study.direction == "max" else "minimize",
    )
    jobs: dict[int, list[Job]] = {}

    def advance(trials: Sequence[Any]) -> None:
        jobs.update({trial.number: _jobs(planner, sweep, trial.params) for trial in trials})
        sweep.write(flat(jobs))
        # A trial of a session that was killed goes on, and is told of now.
        running = [trial.number for trial in trials if trial.state.name == "RUNNING"]
        sweep.run(flat({trial: jobs[trial] for trial in running}))
        for trial in running:
            values = [value for job in jobs[trial] if (value := objective(sweep, job)) is not None]
            if len(values) == len(jobs[trial]):
                study.tell(trial, fmean(values))
            else:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)

    advance(study.get_trials(deepcopy=False))
    while (made := len(study.get_trials(deepcopy=False))) < sweep.study.trials:
        # Seeded by what is known, so that a resumed search proposes what it would have proposed.
        study.sampler = optuna.samplers.TPESampler(seed=made, constant_liar=True)
        for _ in range(min(sweep.launcher.jobs, sweep.study.trials - made)):
            study.ask(space)
        advance(study.get_trials(deepcopy=False)[made:])
    return flat(jobs)


def flat(jobs: Mapping[int, Sequence[Job]]) -> list[Job]:
    """The jobs of all trials."""
    return [job for group in jobs.values() for job in group]


def _jobs(planner: Planner, sweep: Sweep, params: Mapping[str, Any]) -> list[Job]:
    """The jobs of a trial, one a seed, in the folders they have if they have been begun."""
    setting = Setting(values=dict(params), words=tuple(word(*item) for item in params.items()))
    found = []
    for job in planner.jobs([setting]):
        there = sorted((sweep.folder / "jobs").glob(f"*-{job.hash}"))
        found.append(replace(job, folder=f"jobs/{there[0].name}") if there else job)
    return found


def objective(sweep: Sweep, job: Job) -> float | None:
    """What decides, of a job that is done."""
    folder = sweep.folder / job.folder
    if read_json(folder / "status.json").get("status") != "done":
        return None
    changes = read_json(folder / "result.json").get("changes")
    both = changes.get(sweep.study.metric) if isinstance(changes, dict) else None
    return number(both[1]) if isinstance(both, list) and len(both) == 2 else None


def distribution(distributions: Any, key: str, said: Any) -> Any:
    """What a YAML says of a key, as Optuna takes it."""
    if isinstance(said, list) and said:
        return distributions.CategoricalDistribution(said)
    if not isinstance(said, Mapping) or not {"low", "high"} <= set(said) <= {"low", "high", "log", "step"}:
        raise ConfigError(f"sweep.search.{key}: expected a list of choices, or {{low: ..., high: ..., log: true}}")
    low, high, log, step = said["low"], said["high"], bool(said.get("log", False)), said.get("step")
    numbers = [value for value in (low, high, step) if value is not None]
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in numbers) or low >= high:
        raise ConfigError(f"sweep.search.{key}: expected numbers with low < high, got {low} and {high}")
    if all(isinstance(value, int) for value in numbers):
        return distributions.IntDistribution(low, high, log=log, step=step or 1)
    return distributions.FloatDistribution(float(low), float(high), log=log, step=step)
