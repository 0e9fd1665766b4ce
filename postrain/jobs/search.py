"""A search by Optuna (an extra): settings that its TPE sampler proposes, told how they did, resumable from search.db.

Leaves out pruning: a hopeless job ends itself (training/early_stopping.py) and is told of like any other.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from math import isfinite
from statistics import fmean
from typing import TYPE_CHECKING, Any

from postrain.config.extras import installed, load, missing
from postrain.jobs.sweep_config import Study, word
from postrain.jobs.sweep_plan import Job, Planner, Setting, placed
from postrain.jsonl import read_json
from postrain.report.study import measured
from postrain.types import ConfigError

if TYPE_CHECKING:
    from postrain.jobs.sweep_runner import Sweep

DATABASE, NAME = "search.db", "search"


def check_search(study: Study) -> None:
    """Refuses, before anything is made, what cannot be searched."""
    if not installed("optuna"):
        raise ConfigError(f"sweep.search: {missing('optuna', 'optuna')}")
    if study.metric is None or study.direction is None:
        raise ConfigError(
            "sweep.metric, sweep.direction: a search needs both, as in metric: gold/total, direction: max"
        )
    for key, said in study.search.items():
        distribution(key, said)


def search(sweep: Sweep, planner: Planner) -> list[Job]:
    """Runs the trials that are still to do, as many at once as the launcher has places; all jobs there are then."""
    optuna: Any = load("optuna")
    logging.getLogger("optuna").setLevel(logging.WARNING)
    space = {key: distribution(key, said) for key, said in sweep.study.search.items()}
    study = optuna.create_study(
        study_name=NAME,
        storage=f"sqlite:///{sweep.folder / DATABASE}",
        load_if_exists=True,
        direction="maximize" if sweep.study.direction == "max" else "minimize",
    )
    jobs: dict[int, list[Job]] = {}

    def advance(trials: Sequence[Any]) -> None:
        for trial in trials:
            try:
                jobs[trial.number] = _jobs(planner, sweep, trial.params, flat(jobs))
            except ConfigError as error:
                sweep.console.print(f"trial {trial.number}: {error}", style="red", markup=False, soft_wrap=True)
        sweep.write(flat(jobs))
        # With the jobs of an earlier session that have failed or were killed.
        sweep.run(flat({trial.number: jobs.get(trial.number, []) for trial in trials}))
        for trial in trials:
            if trial.state.name == "RUNNING":
                values = [value for job in jobs.get(trial.number, ()) if (value := objective(sweep, job)) is not None]
                whole = bool(values) and len(values) == len(jobs[trial.number])
                study.tell(trial.number, fmean(values) if whole else None, state=_state(optuna, whole))

    advance(study.get_trials(deepcopy=False))
    while (made := len(study.get_trials(deepcopy=False))) < sweep.study.trials:
        # Seeded by what is known, so that a resumed search proposes what it would have proposed.
        study.sampler = optuna.samplers.TPESampler(seed=made, constant_liar=True)
        for _ in range(min(sweep.launcher.jobs, sweep.study.trials - made)):
            study.ask(space)
        advance(study.get_trials(deepcopy=False)[made:])
    return flat(jobs)


def _state(optuna: Any, whole: bool) -> Any:
    states = optuna.trial.TrialState
    return states.COMPLETE if whole else states.FAIL


def flat(jobs: Mapping[int, Sequence[Job]]) -> list[Job]:
    """The jobs of all trials; one that is proposed again is there once."""
    return list({job.hash: job for group in jobs.values() for job in group}.values())


def _jobs(planner: Planner, sweep: Sweep, params: Mapping[str, Any], known: Sequence[Job]) -> list[Job]:
    """The jobs of a trial, one a seed, in the folders they have if they are known."""
    setting = Setting(values=dict(params), words=tuple(word(*item) for item in params.items()))
    before = {job.hash: job for job in known}
    return [before.get(job.hash) or placed(job, sweep.folder) for job in planner.jobs([setting])]


def objective(sweep: Sweep, job: Job) -> float | None:
    """What decides, of a job that is done: the study's metric, or what judges a job that could not measure it.

    In the study's direction: a perplexity has its sign changed where the study wants the largest value.
    """
    folder = sweep.folder / job.folder
    if read_json(folder / "status.json").get("status") != "done":
        return None
    result = read_json(folder / "result.json")
    known = measured(result)
    value = known.get(str(sweep.study.metric))
    if value is None and (value := known.get(str(result.get("metric")))) is not None:
        value = value if result.get("direction") == sweep.study.direction else -value
    return value if value is not None and isfinite(value) else None


def distribution(key: str, said: Any) -> Any:
    """What a YAML says of a key, as Optuna takes it."""
    distributions: Any = load("optuna").distributions
    if isinstance(said, list) and said:
        return distributions.CategoricalDistribution(said)
    if not isinstance(said, Mapping) or not {"low", "high"} <= set(said) <= {"low", "high", "log", "step"}:
        raise ConfigError(f"sweep.search.{key}: expected a list of choices, or {{low: ..., high: ..., log: true}}")
    low, high, log, step = said["low"], said["high"], bool(said.get("log", False)), said.get("step")
    numbers = [value for value in (low, high, step) if value is not None]
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in numbers) or low >= high:
        raise ConfigError(f"sweep.search.{key}: expected numbers with low < high, got {low} and {high}")
    try:
        if all(isinstance(value, int) for value in numbers):
            return distributions.IntDistribution(low, high, log=log, step=1 if step is None else step)
        return distributions.FloatDistribution(float(low), float(high), log=log, step=step)
    except ValueError as error:
        raise ConfigError(f"sweep.search.{key}: {error}") from None
