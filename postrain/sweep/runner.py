"""A sweep from its command line to its answer: plan → launch → table, picture and report; exit code 1 for failed jobs.

sweeps/<name>/<time>-<hash>/
  sweep.yaml   the question, the command line, what decides       jobs.json   every job with its settings and folder
  jobs/00-<hash>/ ...   run or pipeline folders, each with log.txt
  table.md  table.json  frontier.png  report.html                 status.json
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from postrain.callbacks.interrupt import Interrupt, Interrupted
from postrain.folder import Status, config_hash, new_directory, writing
from postrain.jsonl import atomic_write_text, number, plain, read_json
from postrain.readable import duration, figure
from postrain.report import write_report
from postrain.report.study import FILE, JOBS, markdown, read_study, table
from postrain.report.study_page import answer
from postrain.sweep.launch import Launcher
from postrain.sweep.plan import Job, Planner, settings
from postrain.sweep.search import search
from postrain.sweep.study import Study, read
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

    def run(self, jobs: Sequence[Job]) -> None:
        """Runs those that are not done yet, and says of each how it ended."""
        todo = [job for job in jobs if state(self.folder, job) != "done"]
        if before := len(jobs) - len(todo):
            self.console.print(f"{before} of {len(jobs)} jobs were done before")
        self.launcher(todo, self.folder, self.say)

    def say(self, job: Job) -> None:
        """A line on a job that has ended."""
        record = read_json(self.folder / job.folder / "status.json")
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
            records = plain([asdict(job) for job in jobs])
            atomic_write_text(self.folder / JOBS, json.dumps(records, indent=1, ensure_ascii=False) + "\n")


def state(folder: Path, job: Job) -> str:
    """running, done, failed, interrupted, or nothing."""
    return str(read_json(folder / job.folder / "status.json").get("status", ""))


def execute(config: DictConfig, swept: Sequence[str], conf: Path, launcher: Launcher, root: str = "config") -> int:
    """Runs the sweep that a command line asks for, or goes on with one; returns the exit code.

    `config` is what the words for all jobs compose to, `swept` what only the sweep hears, `root` the name of the
    primary config. Raises ConfigError for a user's mistake, before the first job, and Interrupted.
    """
    name, study = read(swept, conf.parent)
    words = [word.removeprefix("++") for word in HydraConfig.get().overrides.task]
    shared = [word for word in words if word.partition("=")[0] not in OWN_KEYS]
    planner = Planner(study, shared, conf, root)
    jobs = [] if study.search else unlike(planner.jobs(list(settings(study))))
    name = config.name or name
    folder = _earlier(Path(config.resume)) if config.resume else _new(config, name, study, shared)
    sweep = Sweep(name, study, folder, launcher, Console(highlight=False, width=max(Console().width, 120)))
    _record(sweep, words=[*dict.fromkeys([*shared, *swept])])
    status = Status(folder / "status.json")
    status.running()
    print(f"sweep folder: {folder}", flush=True)
    try:
        with Interrupt():
            if study.search:
                jobs = search(sweep, planner)
            else:
                jobs = [_placed(job, folder) for job in jobs]
                sweep.write(jobs)
                sweep.run(jobs)
    except Interrupted as stop:
        status.interrupted(stop.signal.name)
        _answer(sweep)
        raise
    except ConfigError as error:
        status.failed(str(error))
        raise
    failed = sum(state(folder, job) != "done" for job in jobs)
    if failed:
        status.failed(f"{failed} of {len(jobs)} jobs failed")
    else:
        status.done()
    _answer(sweep)
    return 1 if failed else 0


def unlike(jobs: Sequence[Job]) -> list[Job]:
    """Without jobs that are the same run as an earlier one."""
    return list({job.hash: job for job in reversed(jobs)}.values())[::-1]


def _earlier(folder: Path) -> Path:
    if not (folder / FILE).is_file():
        raise ConfigError(f"resume: there is no sweep in {folder}; give its folder, such as sweeps/kl_coef/TIME-HASH")
    return folder


def _new(config: DictConfig, name: str, study: Study, words: Sequence[str]) -> Path:
    base = Path(config.paths.get("sweeps", "sweeps"))
    return new_directory(base, name, config_hash({"study": asdict(study), "words": list(words)}))


def _record(sweep: Sweep, words: Sequence[str]) -> None:
    text = OmegaConf.to_yaml({"name": sweep.name, "words": [*words], **asdict(sweep.study)})
    with writing(sweep.folder):
        atomic_write_text(sweep.folder / FILE, text)


def _placed(job: Job, folder: Path) -> Job:
    """The job in the folder that an earlier session gave it."""
    there = sorted((folder / "jobs").glob(f"*-{job.hash}"))
    return replace(job, folder=f"jobs/{there[0].name}") if there else job


def _answer(sweep: Sweep) -> None:
    """What the jobs together say: on the console, in table.md and table.json, in the report."""
    found = read_study(sweep.folder)
    with writing(sweep.folder):
        atomic_write_text(sweep.folder / "table.md", markdown(found))
        atomic_write_text(sweep.folder / "table.json", json.dumps(plain(asdict_of(found)), indent=1) + "\n")
    title = sweep.study.question or f"{sweep.name}: {', '.join(found.settings) or 'seeds'}"
    sweep.console.print(f"\n{title}", style="bold", markup=False, soft_wrap=True)
    sweep.console.print(table(found))
    if said := answer(found):
        sweep.console.print(said, markup=False, soft_wrap=True)
    for job in found.failed:
        if job.state == "failed":
            sweep.console.print(f"failed: {job.label}: {job.reason}", style="red", markup=False, soft_wrap=True)
    sweep.console.print(f"report  {write_report(sweep.folder)}", soft_wrap=True)


def asdict_of(found: Any) -> list[dict[str, Any]]:
    """The cells of the table as plain containers."""
    return [
        {
            "settings": dict(cell.settings),
            "n": cell.n,
            "best": cell is found.best,
            "values": {name: asdict(interval) for name, interval in cell.values.items()},
        }
        for cell in found.cells
    ]
