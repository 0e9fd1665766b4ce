"""Hyperparameter search with Optuna's TPE sampler (the extra `search`); its trials are stored in search.db.

Leaves out pruning: early stopping is a callback of the jobs (training/early_stopping.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import isfinite
from statistics import fmean
from typing import TYPE_CHECKING, Any

from postrain.config.check import accepts
from postrain.config.extras import installed, load, missing
from postrain.config.override_text import format_overrides
from postrain.errors import ConfigError
from postrain.jobs.graph import Job
from postrain.jobs.plan import SweepPlanner, in_earlier_folder
from postrain.jobs.study import Setting, Study
from postrain.report.sweep_results import read_job

if TYPE_CHECKING:
    from postrain.jobs.sweep import Sweep

DATABASE, NAME = "search.db", "search"


def check_search(study: Study) -> None:
    """Raises ConfigError if the study cannot be searched."""
    if not installed("optuna"):
        raise ConfigError(f"sweep.search: {missing('optuna', 'optuna')}")
    if study.metric is None or study.direction is None:
        raise ConfigError(
            "sweep.metric, sweep.direction: a search needs both, as in metric: gold/total, direction: max"
        )
    spaces_of(study)


def with_fractions(study: Study, types: Mapping[str, Any]) -> Study:
    """The study with integer bounds as fractions where the key accepts fractions; `types` are annotations by key.

    Prints a line for a key of unknown type, whose bounds stay integers.
    """
    ready = dict(study.search)
    for key, space in study.search.items():
        if isinstance(space, Mapping) and all(type(space.get(end)) is int for end in ("low", "high")):
            annotation = types.get(key, Any)
            if annotation is Any:
                print(f"sweep.search.{key}: integers are tried; for fractions write low: {float(space['low'])}")
            elif accepts(annotation, space["low"] + 0.5):
                ready[key] = {**space, "low": float(space["low"]), "high": float(space["high"])}
    return replace(study, search=ready)


def first_choices(study: Study) -> tuple[str, ...]:
    """Overrides with the first choice of each list."""
    return format_overrides({key: space[0] for key, space in study.search.items() if isinstance(space, list) and space})


def spaces_of(study: Study) -> dict[str, Any]:
    """Optuna's distributions, by key."""
    return {key: distribution(key, space) for key, space in study.search.items()}


def search(sweep: Sweep, planner: SweepPlanner) -> list[Job]:
    """Runs the remaining trials, as many in parallel as the launcher runs jobs; returns all jobs."""
    optuna: Any = load("optuna")
    logging.getLogger("optuna").setLevel(logging.WARNING)
    study = optuna.create_study(
        study_name=NAME,
        storage=f"sqlite:///{sweep.folder / DATABASE}",
        load_if_exists=True,
        direction="maximize" if sweep.study.direction == "max" else "minimize",
    )
    jobs: dict[int, list[Job]] = {}

    def advance(trials: Sequence[Any]) -> None:
        for trial in trials:
            setting = Setting(values=dict(trial.params), overrides=format_overrides(trial.params))
            known = {job.hash: job for job in distinct(jobs)}
            try:
                planned = planner([setting])
            except ConfigError as error:
                sweep.print(f"trial {trial.number}: {error}", "red")
            else:
                jobs[trial.number] = [known.get(job.hash) or in_earlier_folder(job, sweep.folder) for job in planned]
        sweep.write(distinct(jobs))
        # This includes jobs of an earlier session that failed or were killed.
        sweep.run(distinct({trial.number: jobs.get(trial.number, []) for trial in trials}))
        value_of = objective(sweep, distinct(jobs))
        for trial in trials:
            if trial.state.name == "RUNNING":
                values = [value for job in jobs.get(trial.number, ()) if (value := value_of(job)) is not None]
                complete = bool(values) and len(values) == len(jobs[trial.number])
                state = optuna.trial.TrialState.COMPLETE if complete else optuna.trial.TrialState.FAIL
                study.tell(trial.number, fmean(values) if complete else None, state=state)

    advance(study.get_trials(deepcopy=False))
    while (made := len(study.get_trials(deepcopy=False))) < sweep.study.trials:
        # Seeded by the number of trials, so that a resumed search makes the same proposals.
        study.sampler = optuna.samplers.TPESampler(seed=made, constant_liar=True)
        for _ in range(min(sweep.launcher.jobs, sweep.study.trials - made)):
            try:
                study.ask(spaces_of(sweep.study))
            except ValueError:
                raise ConfigError(
                    "sweep.search: a key has another kind of space than in the earlier trials (integers, fractions, a "
                    "list); start a new search"
                ) from None
        advance(study.get_trials(deepcopy=False)[made:])
    return distinct(jobs)


def distinct(jobs: Mapping[int, Sequence[Job]]) -> list[Job]:
    """The jobs of all trials, without duplicates."""
    return list({job.hash: job for group in jobs.values() for job in group}.values())


def objective(sweep: Sweep, jobs: Sequence[Job]) -> Callable[[Job], float | None]:
    """The value of a finished job to optimize: the study's metric, or the jobs' own deciding metric if none of the
    finished jobs measured that. A job without it has None.

    A job's own metric with the opposite direction changes its sign.
    """
    metric = str(sweep.study.metric)
    is_measured = any(metric in read_job(sweep.folder, job.record()).values for job in jobs)

    def value_of(job: Job) -> float | None:
        found = read_job(sweep.folder, job.record())
        value = found.values.get(metric if is_measured else str(found.metric))
        if value is not None and not is_measured and found.direction != sweep.study.direction:
            value = -value
        return value if value is not None and isfinite(value) else None

    return value_of


def distribution(key: str, space: Any) -> Any:
    """Optuna's distribution for the search space of a key. Raises ConfigError for a wrong space."""
    distributions: Any = load("optuna").distributions
    if isinstance(space, list) and space:
        return distributions.CategoricalDistribution(space)
    if not isinstance(space, Mapping) or not {"low", "high"} <= set(space) <= {"low", "high", "log", "step"}:
        raise ConfigError(f"sweep.search.{key}: expected a list of choices, or {{low: ..., high: ..., log: true}}")
    low, high, log, step = space["low"], space["high"], bool(space.get("log", False)), space.get("step")
    numbers = [value for value in (low, high, step) if value is not None]
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in numbers) or low >= high:
        raise ConfigError(f"sweep.search.{key}: expected numbers with low < high, got {low} and {high}")
    try:
        if all(isinstance(value, int) for value in numbers):
            return distributions.IntDistribution(low, high, log=log, step=1 if step is None else step)
        return distributions.FloatDistribution(float(low), float(high), log=log, step=step)
    except ValueError as error:
        raise ConfigError(f"sweep.search.{key}: {error}") from None
