"""A sweep from its command line to its answer: plan → launch → table, picture and report; exit code 1 for failed jobs.

sweeps/<name>/<time>-<hash>/
  sweep.yaml   the question, the command line, what decides       jobs.json   every job with its settings and folder
  jobs/00-<hash>/ ...   run or pipeline folders, each with log.txt
  table.md  table.json  frontier.png  report.html                 status.json
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from postrain.config.masking import masked
from postrain.config.overrides import task_words
from postrain.config.trust import Guest, said_in
from postrain.formatting import duration, figure
from postrain.jobs.launchers import Launcher
from postrain.jobs.search import check_search, search
from postrain.jobs.sweep_config import Study, read
from postrain.jobs.sweep_plan import Job, Planner, flags, placed, settings
from postrain.jsonl import atomic_write_text, number, plain, read_json
from postrain.report import write_report
from postrain.report.study import FILE, JOBS, read_study
from postrain.report.study_table import markdown, table
from postrain.report.verdict import verdict
from postrain.runs.folder import Status, check_contained, config_hash, new_directory, writing
from postrain.runs.interrupt import Interrupt, Interrupted
from postrain.runs.status import Ending
from postrain.types import ConfigError

# Said to the sweep, or decided by it.
OWN_KEYS = ("resume", "name", "allow_change")


@dataclass(frozen=True)
class Sweep:
    """A sweep that is going on."""

    name: str
    study: Study
    folder: Path
    launcher: Launcher
    console: Console
    report: bool
    """Whether it ends in report.html."""

    def run(self, jobs: Sequence[Job]) -> None:
        """Runs those that are not done yet, and says of each how it ended."""
        todo = [job for job in jobs if state(self.folder, job) != "done"]
        if before := len(jobs) - len(todo):
            self.console.print(f"{before} of {len(jobs)} jobs were done before")
        self.launcher(todo, self.folder, self.say)

    def say(self, job: Job) -> None:
        """A line on a job that has ended."""
        record = Status(self.folder / job.folder / "status.json").current()
        result = read_json(self.folder / job.folder / "result.json")
        ended = str(record.get("status", "not started"))
        parts = [f"{job.number:>3}", job.label, ended, duration(float(number(record.get("seconds")) or 0.0))]
        objective = number(result.get("objective"))
        if objective is not None:
            parts.append(f"{result.get('metric')} {figure(objective)}")
        parts += [str(text) for text in (record.get("reason"), result.get("stopped")) if text]
        self.console.print("  ".join(parts), style="red" if ended == "failed" else None, markup=False, soft_wrap=True)

    def write(self, jobs: Sequence[Job]) -> None:
        """jobs.json: which jobs there are, in one piece."""
        with writing(self.folder):
            records = masked(plain([asdict(job) for job in jobs]))
            atomic_write_text(self.folder / JOBS, json.dumps(records, indent=1, ensure_ascii=False) + "\n")


def state(folder: Path, job: Job) -> str:
    """running, done, failed, interrupted, or nothing."""
    return str(Status(folder / job.folder / "status.json").current().get("status", ""))


def execute(
    config: DictConfig,
    swept: Sequence[str],
    conf: Path,
    launcher: Launcher,
    root: str = "config",
    today: Sequence[str] = (),
) -> int:
    """Runs the sweep that a command line asks for, or goes on with one; returns the exit code.

    `config` is what the words for all jobs compose to, `swept` what only the sweep hears, `root` the name of the
    primary config, `today` the command line without what a resumed sweep has recorded.
    Raises ConfigError for a user's mistake, before the first job, and Interrupted.
    """
    words = [word for word in task_words() if word.partition("=")[0] not in OWN_KEYS]
    earlier = _earlier(Path(config.resume)) if config.get("resume") else None
    name, study, shared = read(swept, words, conf.parent, earlier and earlier / FILE)
    planner = Planner(study, shared, conf, root, earlier and Guest(earlier, said_in(today)))
    if study.search:
        check_search(study)
    jobs = [] if study.search else unlike(planner.jobs(list(settings(study))))
    name = config.name or name
    folder = earlier or _new(config, name, study, shared)
    sweep = Sweep(
        name,
        study,
        folder,
        launcher,
        Console(highlight=False, width=max(Console().width, 120)),
        config.get("report", True),
    )
    with alone(folder), Interrupt():
        print(f"sweep folder: {folder}", flush=True)
        _record(sweep, words=[*shared, *swept], flags=flags())
        return _carry_out(sweep, jobs, planner)


def _carry_out(sweep: Sweep, jobs: Sequence[Job], planner: Planner) -> int:
    """Runs what is to do and answers; status.json says how it ended, whatever ended it."""
    status = Status(sweep.folder / "status.json")
    with Ending(status):
        try:
            if sweep.study.search:
                jobs = search(sweep, planner)
            else:
                jobs = [placed(job, sweep.folder) for job in jobs]
                sweep.write([*_kept(sweep.folder, jobs), *jobs])
                sweep.run(jobs)
        except Interrupted:
            _answer(sweep)
            raise
    failed = sum(state(sweep.folder, job) != "done" for job in jobs)
    if failed:
        status.failed(f"{failed} of {len(jobs)} jobs failed")
    _answer(sweep)
    return 1 if failed else 0


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Refuses to run a sweep that another process is running."""
    with writing(folder):
        lock = (folder / ".lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"resume: another process is running the sweep in {folder}; wait for it") from None
        yield


def unlike(jobs: Sequence[Job]) -> list[Job]:
    """Without jobs that are the same run as an earlier one, which is said."""
    found: dict[str, Job] = {}
    for job in jobs:
        if found.setdefault(job.hash, job) is not job:
            print(f"{job.label} is the same run as {found[job.hash].label}: it runs once")
    return list(found.values())


def _kept(folder: Path, jobs: Sequence[Job]) -> list[Job]:
    """Jobs of an earlier session that are done and stand for settings that today's plan does not have; none where
    jobs.json is damaged."""
    planned = {str((dict(job.settings), job.seed)) for job in jobs}
    try:
        records = json.loads((folder / JOBS).read_bytes())
        known = [Job(**{**record, "words": tuple(record["words"])}) for record in records]
        return [job for job in known if str((dict(job.settings), job.seed)) not in planned and _is_done(folder, job)]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return []


def _is_done(folder: Path, job: Job) -> bool:
    """Whether a job that jobs.json names lies in the sweep's folder and has come to its end."""
    return (folder / job.folder).resolve().is_relative_to(folder.resolve()) and state(folder, job) == "done"


def _earlier(folder: Path) -> Path:
    if not (folder / FILE).is_file():
        raise ConfigError(f"resume: there is no sweep in {folder}; give its folder, such as sweeps/kl_coef/TIME-HASH")
    check_contained(folder)
    saved: Any = OmegaConf.load(folder / FILE)  # readable: main.py has read its words
    started_in = saved.get("started_in")
    if started_in and Path(str(started_in)) != Path.cwd():
        raise ConfigError(f"resume: {folder} was started in {started_in}, and paths may be relative to it; go on there")
    return folder


def _new(config: DictConfig, name: str, study: Study, words: Sequence[str]) -> Path:
    base = Path(config.paths.get("sweeps", "sweeps"))
    return new_directory(base, name, config_hash({"study": asdict(study), "words": list(words)}))


def _record(sweep: Sweep, words: Sequence[str], flags: Sequence[str]) -> None:
    """sweep.yaml; of words said twice the later one counts."""
    said = [word for place, word in enumerate(words) if word not in words[place + 1 :]]
    about = {"name": sweep.name, "words": said, "flags": [*flags], "started_in": str(Path.cwd())}
    with writing(sweep.folder):
        atomic_write_text(sweep.folder / FILE, OmegaConf.to_yaml(masked(about | asdict(sweep.study))), private=True)


def _answer(sweep: Sweep) -> None:
    """What the jobs together say: on the console, in table.md and table.json, in the report."""
    found = read_study(sweep.folder)
    with writing(sweep.folder):
        atomic_write_text(sweep.folder / "table.md", markdown(found))
        atomic_write_text(sweep.folder / "table.json", json.dumps(plain(asdict_of(found)), indent=1) + "\n")
    title = sweep.study.question or f"{sweep.name}: {', '.join(found.settings) or 'seeds'}"
    sweep.console.print(f"\n{title}", style="bold", markup=False, soft_wrap=True)
    sweep.console.print(table(found))
    for line in found.missing:
        sweep.console.print(f"missing: {line}", style="yellow", markup=False, soft_wrap=True)
    for line in verdict(found):
        sweep.console.print(line, markup=False, soft_wrap=True)
    for job in found.failed:
        if job.state == "failed":
            sweep.console.print(f"failed: {job.label}: {job.reason}", style="red", markup=False, soft_wrap=True)
    if sweep.report:
        sweep.console.print(f"report  {write_report(sweep.folder)}", soft_wrap=True)


def asdict_of(found: Any) -> list[dict[str, Any]]:
    """The rows of the table as plain containers: the settings, then the untrained model, which has none."""
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
