"""Runs a sweep with `sequential`: after each round of seeds it drops beaten settings, until the sweep is decided.

A resumed sweep makes the same decisions, from the results in its folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from postrain.jobs.graph import Job, is_done
from postrain.jobs.plan import SweepPlanner, in_earlier_folder
from postrain.jobs.study import label_of, settings
from postrain.report.sequential import Decisions, Sequential, decide
from postrain.report.sweep_results import read_sweep

if TYPE_CHECKING:
    from postrain.jobs.sweep import Sweep


def run_until_decided(sweep: Sweep, planner: SweepPlanner, first: Sequence[Job]) -> list[Job]:
    """Runs the jobs `first`, those of the study's seeds, then further seeds; returns all jobs.

    A setting without a finished job gets no further seeds.
    """
    jobs, open_settings = [in_earlier_folder(job, sweep.folder) for job in first], [*settings(sweep.study)]
    seeds, rule = list(sweep.study.seeds or ()), sweep.study.sequential
    while True:
        sweep.write(jobs)
        sweep.run(jobs)
        found = decisions(sweep, rule)
        done = {label_of(job.settings) for job in jobs if is_done(sweep.folder / job.folder)}
        open_settings = [each for each in open_settings if each.label in done - {*found.beaten}]
        labels = {each.label for each in open_settings}
        undecided = [pair for pair in found.undecided if {*pair} <= labels]
        if not undecided or len(open_settings) < 2 or len(seeds) >= (rule.max_seeds or 0):
            return jobs
        seeds.append(max(seeds) + 1)
        sweep.print(f"undecided after {len(seeds) - 1} seeds: seed {seeds[-1]} for {len(open_settings)} settings")
        jobs += [in_earlier_folder(job, sweep.folder) for job in planner(open_settings, seeds[-1:])]


def decisions(sweep: Sweep, rule: Sequential) -> Decisions:
    """What the finished jobs decide; nothing while no metric is common to all settings."""
    result = read_sweep(sweep.folder)
    if result.metric is None:
        return Decisions({}, ())
    return decide(result.cells, result.metric, result.direction, rule)
