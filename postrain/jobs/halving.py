"""Runs a sweep with `halving`: all settings for a few updates, then the better part of them for more, and so on.

Successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943). Kept settings continue by `fork` from the end of
their last run, so no update is made twice; a run that stopped early does not continue. The table has the last run of
each setting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise, product
from math import ceil
from typing import TYPE_CHECKING, Any

from postrain.config.override_text import format_override, format_overrides
from postrain.jobs.graph import Job, is_done
from postrain.jobs.plan import SweepPlanner, in_earlier_folder
from postrain.jobs.study import UPDATES, Setting, Study, label_of, settings
from postrain.report.sweep_results import read_sweep
from postrain.runs.folder import RunFolder

if TYPE_CHECKING:
    from postrain.jobs.sweep import Sweep


def run_halving(sweep: Sweep, planner: SweepPlanner, first: Sequence[Job]) -> list[Job]:
    """Runs all rungs, `first` is the first one; returns the last job of each setting and seed."""
    rungs = sweep.study.halving.updates
    planned = [in_earlier_folder(job, sweep.folder) for job in first]
    last: dict[tuple[str, int | None], Job] = {}
    kept = [*settings(sweep.study)]
    for updates, following in pairwise([*rungs, 0]):
        last |= {(label_of(without_updates(job.settings)), job.seed): job for job in planned}
        sweep.write([*last.values()])
        sweep.run(planned)
        kept = best_of(sweep, kept, updates)
        if not following:
            break
        planned = []
        for setting, seed in product(kept, sweep.study.seeds or (None,)):
            if (before := last.get((setting.label, seed))) and is_done(sweep.folder / before.folder):
                folder = RunFolder((sweep.folder / before.folder).resolve())
                if folder.last_update < updates:
                    sweep.print(f"{before.name} stopped after update {folder.last_update} and does not continue")
                    continue
                point = at_rung(setting, following, format_override("fork", f"{folder.path}@{updates}"))
                planned += [
                    in_earlier_folder(job, sweep.folder) for job in planner([point], None if seed is None else [seed])
                ]
        if not planned:
            break
    return [*last.values()]


def first_rung(study: Study) -> list[Setting]:
    """The settings with the updates of the first rung."""
    return [at_rung(setting, study.halving.updates[0]) for setting in settings(study)]


def at_rung(setting: Setting, updates: int, *words: str) -> Setting:
    """The setting with this number of updates, which is a column of the table, and further overrides."""
    return Setting(
        values={**setting.values, UPDATES: updates},
        overrides=(*setting.overrides, *format_overrides({UPDATES: updates}), *words),
    )


def best_of(sweep: Sweep, tried: Sequence[Setting], updates: int) -> list[Setting]:
    """The best of the settings after these updates, by the mean of the metric; says which are left out."""
    by_label = {at_rung(setting, updates).label: setting for setting in tried}
    ranked = [by_label[cell.label] for cell in read_sweep(sweep.folder).ranked if cell.label in by_label]
    kept = ranked[: ceil(len(tried) * sweep.study.halving.keep)]
    if updates != sweep.study.halving.updates[-1]:
        dropped = [setting.label for setting in tried if setting not in kept]
        names = f"; left out: {', '.join(dropped)}" if dropped else ""
        sweep.print(f"after {updates} updates {len(kept)} of {len(tried)} settings continue{names}")
    return kept


def without_updates(values: Mapping[str, Any]) -> dict[str, Any]:
    """The varied values of a setting, of those of its rung."""
    return {key: value for key, value in values.items() if key != UPDATES}
