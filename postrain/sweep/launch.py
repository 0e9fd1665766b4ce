"""Where the jobs of a sweep run: a process each on this machine, or whatever Hydra's own launchers reach.

However a job ends, its status.json says so afterwards; nobody raises for a job that failed.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext
from omegaconf import read_write

from postrain.callbacks.interrupt import Interrupted
from postrain.folder import Status, writing
from postrain.sweep.orphan import JOB
from postrain.sweep.plan import Job
from postrain.types import Count

LOG = "log.txt"
Ended = Callable[[Job], None]


class Launcher(Protocol):
    """Runs jobs."""

    @property
    def jobs(self) -> int:
        """At once."""
        ...

    def __call__(self, jobs: Sequence[Job], folder: Path, ended: Ended) -> None:
        """Returns when all have ended; `ended` is told of each. Raises Interrupted after Ctrl-C or SIGTERM."""
        ...


def words_of(job: Job, folder: Path) -> list[str]:
    """What to say to a job: its words, or that it shall go on where it stopped."""
    place = folder / job.folder
    begun = any((place / name).is_file() for name in ("config.yaml", "pipeline.yaml"))
    return [f"resume={place}"] if begun else [*job.words]


@dataclass(frozen=True, kw_only=True)
class Local:
    """A process for each job: what kills one leaves the others alone, and their settings cannot mix."""

    jobs: Count
    """At once; they share the cores."""
    command: tuple[str, ...]
    """What runs a job, before its words."""
    living: set[subprocess.Popen[bytes]] = field(default_factory=set)
    stopping: threading.Event = field(default_factory=threading.Event)

    def __call__(self, jobs: Sequence[Job], folder: Path, ended: Ended) -> None:
        slots = list(range(self.jobs))
        with ThreadPoolExecutor(self.jobs) as pool:
            futures = {pool.submit(self._run, job, folder, slots): job for job in jobs}
            try:
                for future in as_completed(futures):
                    future.result()
                    ended(futures[future])
            except Interrupted:
                self.stopping.set()
                print("stopping; running jobs finish their update and save, Ctrl-C stops them at once", file=sys.stderr)
                self._stop()
                try:
                    wait(futures)
                except Interrupted:
                    self._stop()
                raise

    def _stop(self) -> None:
        for process in list(self.living):
            process.send_signal(signal.SIGTERM)

    def _run(self, job: Job, folder: Path, slots: list[int]) -> None:
        place = folder / job.folder
        with writing(place):
            place.mkdir(parents=True, exist_ok=True)
        with (place / LOG).open("ab") as log, (place / ".lock").open("w") as lock:
            # Of a sweep that was killed the job may still be saving; both hold the lock as long as they live.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.stopping.is_set():
                return
            status, slot = Status(place / "status.json"), slots.pop()
            status.running()
            process = subprocess.Popen(
                [*self.command, *words_of(job, folder), f"hydra.run.dir='{place}'"],
                env=os.environ | share(self.jobs, slot) | {JOB: "1"},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[lock.fileno()],
                start_new_session=True,
            )
            self.living.add(process)
            code = process.wait()
            self.living.discard(process)
            slots.append(slot)
        if status.read().get("status") == "running":
            status.failed(last_words(place / LOG, code))


def share(jobs: int, slot: int) -> dict[str, str]:
    """The part of the machine that a job gets: threads, and one GPU where there are several."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = {"OMP_WAIT_POLICY": "PASSIVE"}
    if jobs > 1:
        found["OMP_NUM_THREADS"] = str(max(1, cores // jobs))
    gpus = torch.cuda.device_count()
    if jobs > 1 and gpus > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        found["CUDA_VISIBLE_DEVICES"] = visible[slot % len(visible)]
    return found


def last_words(log: Path, code: int) -> str:
    """Why a job ended that has not said so itself."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    mistakes = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")
    return mistakes[-1] if mistakes else f"ended with exit code {code}; see {log.name}"


@dataclass(frozen=True, kw_only=True)
class ThroughHydra:
    """One of Hydra's launchers: joblib, submitit_slurm, ray, ... Jobs get their folder as hydra.sweep.subdir."""

    task: Callable[[Any], Any]
    """Runs a job's config in the worker."""
    forced: Callable[[Sequence[str]], list[str]]
    """Words as Hydra takes them."""
    jobs: Count

    def __call__(self, jobs: Sequence[Job], folder: Path, ended: Ended) -> None:
        if not jobs:
            return
        loader = GlobalHydra.instance().config_loader()
        config: Any = HydraConfig.instance().cfg
        config = config.copy()
        with read_write(config.hydra):
            config.hydra.sweep.dir = str(folder)
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=HydraContext(config_loader=loader, callbacks=Callbacks()),
            task_function=self.task,
            config=config,
        )
        home = f"hydra.sweep.dir='{folder}'"
        words = [[*self.forced(words_of(job, folder)), home, f"hydra.sweep.subdir={job.folder}"] for job in jobs]
        try:
            returns: Sequence[JobReturn | None] = launcher.launch(words, initial_job_idx=jobs[0].number)
        except RuntimeError as error:  # a worker was killed, and took the launcher's pool along
            print(f"warning: {error}", file=sys.stderr)
            returns = [None] * len(jobs)
        for job, returned in zip(jobs, returns, strict=True):
            self._note(Status(folder / job.folder / "status.json"), returned)
            ended(job)

    def _note(self, status: Status, returned: JobReturn | None) -> None:
        """What the worker knows and the job could not write itself."""
        ended = returned is not None and returned.status is JobStatus.COMPLETED
        if not ended and status.read().get("status") in (None, "running"):
            status.path.parent.mkdir(parents=True, exist_ok=True)
            error = None if returned is None else returned._return_value
            status.failed("its worker was killed" if error is None else str(error) or type(error).__name__)
