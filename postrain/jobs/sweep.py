"""Runs a sweep: plan → launch → table, plot and report. The exit code is 1 if a job failed.

sweeps/<name>/<time>-<hash>/
  sweep.yaml   the study and its command line       jobs.json   every job with its settings and folder
  jobs/00-<hash>/ ...   run or pipeline folders, each with log.txt
  table.md  table.json  frontier.png  report.html                 status.json
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from postrain.config.masking import masked
from postrain.config.overrides import job_overrides
from postrain.config.trust import UntrustedFolder, override_items
from postrain.config.yaml_file import dump_yaml, load_yaml
from postrain.errors import ConfigError
from postrain.formatting import duration, figure
from postrain.hardware.environment import refuse_ranks
from postrain.jobs.graph import Job, is_done
from postrain.jobs.halving import first_rung, run_halving
from postrain.jobs.launchers import Launcher, launcher_of
from postrain.jobs.plan import Composer, SweepPlanner, flags, in_earlier_folder
from postrain.jobs.search import check_search, first_choices, search, with_fractions
from postrain.jobs.sequential import run_until_decided
from postrain.jobs.study import Study, read, settings
from postrain.jsonl import atomic_write_text, plain
from postrain.report import write_report
from postrain.report.sweep_results import FILE, JOBS, read_job, read_sweep
from postrain.report.sweep_summary import markdown, sentences, table
from postrain.runs.folder import Status, check_contained, config_hash, new_directory, writing
from postrain.runs.interrupt import Interrupt, Interrupted
from postrain.runs.locks import try_lock
from postrain.runs.status import StatusRecorder

# Keys of the sweep itself, not passed to its jobs.
OWN_KEYS = ("resume", "name", "allow_change")


@dataclass(frozen=True)
class Sweep:
    """A running sweep."""

    name: str
    study: Study
    folder: Path
    launcher: Launcher
    report: bool
    """Whether report.html is written at the end."""
    console: Console = field(default_factory=lambda: Console(highlight=False, width=max(Console().width, 120)))

    def run(self, jobs: Sequence[Job]) -> None:
        """Runs the unfinished jobs; prints a line when a job ends."""
        todo = [job for job in jobs if not is_done(self.folder / job.folder)]
        if before := len(jobs) - len(todo):
            self.console.print(f"{before} of {len(jobs)} jobs were done before")
        self.launcher(todo, self.folder, self.ended)

    def ended(self, job: Job) -> None:
        """Prints the result of a job."""
        found = read_job(self.folder, job.record())
        measured = "" if found.objective is None else f"{found.metric} {figure(found.objective)}"
        if (named := self.study.metric) is not None and named in found.values:
            measured = f"{named} {figure(found.values[named])}"
        parts = [f"{job.number:>3}", job.name, found.state, duration(found.seconds), measured, found.reason]
        self.print("  ".join(filter(None, parts)), "red" if found.state == "failed" else None)

    def print(self, line: str, style: str | None = None) -> None:
        """Prints a line without markup or wrapping."""
        self.console.print(line, style=style, markup=False, soft_wrap=True)

    def write(self, jobs: Sequence[Job]) -> None:
        """Writes jobs.json atomically."""
        with writing(self.folder):
            records = masked(plain([job.record() for job in jobs]))
            atomic_write_text(self.folder / JOBS, json.dumps(records, indent=1, ensure_ascii=False) + "\n")

    def record(self, overrides: Sequence[str], flags: Sequence[str]) -> None:
        """Writes sweep.yaml: the study and its command line. Of repeated overrides only the last one is kept."""
        kept = [each for index, each in enumerate(overrides) if each not in overrides[index + 1 :]]
        about = {"name": self.name, "words": kept, "flags": [*flags], "started_in": str(Path.cwd())}
        with writing(self.folder):
            atomic_write_text(self.folder / FILE, dump_yaml(masked(about | asdict(self.study))), private=True)

    def summarize(self) -> None:
        """Prints the results of all jobs and writes table.md, table.json and the report."""
        found = read_sweep(self.folder)
        with writing(self.folder):
            atomic_write_text(self.folder / "table.md", markdown(found))
            atomic_write_text(self.folder / "table.json", json.dumps(plain(rows_of(found)), indent=1) + "\n")
        self.print("\n" + (self.study.question or f"{self.name}: {', '.join(found.settings) or 'seeds'}"), "bold")
        self.console.print(table(found))
        for line in found.missing:
            self.print(f"missing: {line}", "yellow")
        for line in sentences(found):
            self.print(line)
        for job in found.failed:
            if job.state == "failed":
                self.print(f"failed: {job.label}: {job.reason}", "red")
        if self.report:
            self.console.print(f"report  {write_report(self.folder)}", soft_wrap=True)


def execute(
    config: DictConfig,
    swept: Sequence[str],
    conf: Path,
    primary: str,
    run_job: Callable[[Any], float | None],
    given: Sequence[str],
) -> int:
    """Runs the sweep of a command line, or resumes one; returns the exit code.

    `config` is composed from the overrides for all jobs, `swept` are the overrides for the sweep itself, `primary` is
    the name of the primary config, `run_job` runs a job's config in this process, `given` are the overrides of this
    command line, without those that a resumed sweep has recorded.
    Raises ConfigError for a user's mistake, before the first job, and Interrupted.
    """
    refuse_ranks("a sweep")
    trainer: Any = OmegaConf.to_container(config.get("trainer") or OmegaConf.create())
    launcher = launcher_of(conf, primary, run_job, trainer)
    overrides = [each for each in job_overrides() if each.partition("=")[0] not in OWN_KEYS]
    earlier = _earlier(Path(config.resume)) if config.get("resume") else None
    name, study, shared = read(swept, overrides, conf.parent, earlier and earlier / FILE)
    planner = SweepPlanner(
        study, shared, Composer(conf, earlier and UntrustedFolder(earlier, override_items(given))), primary
    )
    if study.search:
        study = with_fractions(study, planner.types(first_choices(study)))
        check_search(study)
    points = first_rung(study) if study.halving.updates else [*settings(study)]
    jobs = [] if study.search else distinct(planner(points))
    name = config.name or name
    folder = earlier or _new(config, name, study, shared)
    sweep = Sweep(name, study, folder, launcher, config.get("report", True))
    with sweep_lock(folder), Interrupt():
        print(f"sweep folder: {folder}", flush=True)
        sweep.record([*shared, *swept], flags())
        return _run(sweep, jobs, planner)


def _run(sweep: Sweep, jobs: Sequence[Job], planner: SweepPlanner) -> int:
    """Runs the unfinished jobs and prints the results; status.json records how the sweep ended, also on an error."""
    status = Status(sweep.folder / "status.json")
    with StatusRecorder(status):
        try:
            if sweep.study.search:
                jobs = search(sweep, planner)
            elif sweep.study.halving.updates:
                jobs = run_halving(sweep, planner, jobs)
            elif sweep.study.sequential.max_seeds:
                jobs = run_until_decided(sweep, planner, jobs)
            else:
                jobs = [in_earlier_folder(job, sweep.folder) for job in jobs]
                sweep.write([*earlier_jobs(sweep.folder, jobs), *jobs])
                sweep.run(jobs)
        except Interrupted:
            sweep.summarize()
            raise
    failed = sum(not is_done(sweep.folder / job.folder) for job in jobs)
    if failed:
        status.failed(f"{failed} of {len(jobs)} jobs failed")
    sweep.summarize()
    return 1 if failed else 0


@contextmanager
def sweep_lock(folder: Path) -> Iterator[None]:
    """Locks a sweep. Raises ConfigError if another process is running it."""
    with writing(folder):
        lock = (folder / ".lock").open("w")
    with lock:
        if not try_lock(lock):
            raise ConfigError(f"resume: another process is running the sweep in {folder}; wait for it")
        yield


def distinct(jobs: Sequence[Job]) -> list[Job]:
    """The jobs without duplicates of the same run; prints the duplicates."""
    found: dict[str, Job] = {}
    for job in jobs:
        if found.setdefault(job.hash, job) is not job:
            print(f"{job.name} is the same run as {found[job.hash].name}: it runs once")
    return list(found.values())


def earlier_jobs(folder: Path, jobs: Sequence[Job]) -> list[Job]:
    """Finished jobs of an earlier session whose settings the current plan does not contain; empty if jobs.json is
    damaged."""
    planned = {str((dict(job.settings), job.seed)) for job in jobs}
    try:
        known = [Job.of(record) for record in json.loads((folder / JOBS).read_bytes())]
        others = [job for job in known if str((dict(job.settings), job.seed)) not in planned]
        inside = [job for job in others if (folder / job.folder).resolve().is_relative_to(folder.resolve())]
        return [job for job in inside if is_done(folder / job.folder)]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return []


def _earlier(folder: Path) -> Path:
    if not (folder / FILE).is_file():
        raise ConfigError(f"resume: there is no sweep in {folder}; give its folder, such as sweeps/kl_coef/TIME-HASH")
    check_contained(folder)
    Status(folder / "status.json").check_version()
    saved: Any = load_yaml(folder / FILE)  # readable: main.py has read it
    started_in = saved.get("started_in")
    if started_in and Path(str(started_in)) != Path.cwd():
        raise ConfigError(
            f"resume: {folder} was started in {started_in}, and paths may be relative to it; resume it there"
        )
    return folder


def _new(config: DictConfig, name: str, study: Study, overrides: Sequence[str]) -> Path:
    base = Path(config.paths.get("sweeps", "sweeps"))
    return new_directory(base, name, config_hash({"study": asdict(study), "words": list(overrides)}))


def rows_of(found: Any) -> list[dict[str, Any]]:
    """The rows of the table as plain containers: the settings, then the untrained model."""
    return [
        {
            "label": cell.label,
            "settings": dict(cell.settings),
            "n": cell.n,
            "collapsed": len(cell.collapsed),
            "best": cell is found.best,
            "values": {name: asdict(interval) for name, interval in cell.values.items()},
        }
        for cell in (*found.cells, *found.untrained)
    ]
