"""Launchers of a sweep's jobs: one process per job on this machine, or one of Hydra's launchers.

A failed job does not raise: its status.json records the reason.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol

import torch
from hydra.core.hydra_config import HydraConfig

from postrain.config.check import check
from postrain.config.override_text import format_override
from postrain.config.overrides import PROGRAMS, forced
from postrain.errors import ConfigError
from postrain.jobs.graph import Job, is_done, overrides_of
from postrain.jobs.hydra_launcher import HydraLauncher
from postrain.jobs.parent_watchdog import JOB
from postrain.jobs.plan import extra_folder, flags
from postrain.processor import usable_cores
from postrain.report.sweep_cells import TIMED_OUT
from postrain.runs.folder import Status, writing
from postrain.runs.interrupt import Interrupted
from postrain.runs.locks import try_lock
from postrain.types import Count, Positive

LOG = "log.txt"
GRACE = 30.0
LOCAL = "local"
Ended = Callable[[Job], None]


class Launcher(Protocol):
    """Runs jobs."""

    @property
    def jobs(self) -> int:
        """Jobs that run in parallel."""
        ...

    def __call__(self, jobs: Sequence[Job], folder: Path, ended: Ended) -> None:
        """Returns when all jobs have ended; calls `ended` with each. Raises Interrupted after Ctrl-C or SIGTERM."""
        ...


def launcher_of(
    conf: Path, primary: str, run_job: Callable[[Any], float | None], trainer: Mapping[str, Any]
) -> Launcher:
    """The launcher that `hydra/launcher` selects.

    `run_job` runs the config of a job in this process; the `trainer` group says which resources a job needs.
    """
    chosen, resumes = HydraConfig.get(), primary not in ("evaluate", "stress")
    if chosen.runtime.choices["hydra/launcher"] == LOCAL:
        settings = {key: chosen.launcher.get(key) for key in ("jobs", "timeout")}
        try:
            check(settings, Settings)
        except ConfigError as error:
            raise ConfigError("\n".join(f"hydra.launcher.{line}" for line in str(error).splitlines())) from None
        return Local(command=(*command(conf, primary), *flags()), resumes=resumes, **settings)
    # joblib's key for the number of parallel jobs; -1 means all cores.
    parallel = chosen.launcher.get("n_jobs") or 1
    hydra_overrides = partial(forced, conf=conf, root=primary, extra=extra_folder())
    jobs = parallel if parallel > 0 else usable_cores()
    return HydraLauncher(task=run_job, forced=hydra_overrides, jobs=jobs, trainer=trainer, resumes=resumes)


def command(conf: Path, primary: str) -> tuple[str, ...]:
    """The command that starts a job of a primary config in a separate process."""
    program, *words = shlex.split(PROGRAMS[primary])
    if program == "postrain":
        return (sys.executable, "-m", program, *words)
    return (sys.executable, *(str(conf.resolve().parent / word) if word == "train.py" else word for word in words))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Options of the local launcher, which runs each job in a process on this machine."""

    jobs: Count
    """Jobs that run in parallel, 2 by default. Each gets an equal share of the CPU cores and of the GPUs."""
    timeout: Positive | None = None
    """Time limit of a job in seconds, counted from its start in this session. At the limit the job gets SIGTERM and
    30 s to save a checkpoint; it counts as failed ("timed out"). null disables it."""


@dataclass(frozen=True, kw_only=True)
class Local(Settings):
    """Runs each job in a separate process, so that a killed job does not affect the others."""

    command: tuple[str, ...]
    """The command that runs a job, without overrides."""
    resumes: bool = True
    """Whether the program can resume a run folder."""
    grace: Positive = GRACE
    """Seconds between SIGTERM and SIGKILL for a job that reached its time limit."""
    running: set[subprocess.Popen[bytes]] = field(default_factory=set)
    stopping: threading.Event = field(default_factory=threading.Event)
    starting: threading.Lock = field(default_factory=threading.Lock)
    """Held while a job is started and while all jobs get SIGTERM, so that no job misses the signal."""

    def __call__(self, jobs: Sequence[Job], folder: Path, ended: Ended) -> None:
        slots = list(range(self.jobs))
        with ThreadPoolExecutor(self.jobs) as pool:
            futures = {pool.submit(self._run, job, folder, slots): job for job in jobs}
            try:
                for future in as_completed(futures):
                    try:
                        future.result()
                    except ConfigError as error:
                        # Its folder cannot be written, so neither can its status; the other jobs continue.
                        print(f"error: {futures[future].name}: {error}", file=sys.stderr)
                    else:
                        ended(futures[future])
            except Interrupted:
                print(
                    "stopping after the current update of each job; press Ctrl-C again to stop immediately",
                    file=sys.stderr,
                )
                self._stop()
                try:
                    wait(futures)
                except Interrupted:
                    self._stop()
                raise

    def _stop(self) -> None:
        with self.starting:
            self.stopping.set()
            for process in self.running:
                process.send_signal(signal.SIGTERM)

    def _run(self, job: Job, folder: Path, slots: list[int]) -> None:
        path = folder / job.folder
        slot = slots.pop()
        try:
            with writing(path, "remove it, or choose another folder with paths.sweeps=DIRECTORY"):
                path.mkdir(parents=True, exist_ok=True)
                log, lock = (path / LOG).open("ab"), (path / ".lock").open("w")
            with log, lock:
                if self._acquire(lock, job) and not is_done(path):
                    self._process(job, folder, slot, log, lock)
        finally:
            slots.append(slot)

    def _acquire(self, lock: IO[str], job: Job) -> bool:
        """Waits for a job of a killed sweep that may still be saving. False if this sweep is stopping."""
        waiting = False
        while not self.stopping.is_set():
            if try_lock(lock):
                return True
            if not waiting:
                print(f"waiting for {job.name}, still running from an earlier sweep", file=sys.stderr)
            waiting = True
            self.stopping.wait(0.2)
        return False

    def _process(self, job: Job, folder: Path, slot: int, log: IO[bytes], lock: IO[str]) -> None:
        """Runs a job unless the sweep is stopping; completes status.json if the job could not."""
        path, offset = folder / job.folder, log.tell()
        status = Status(path / "status.json")
        with self.starting:
            if self.stopping.is_set():
                return
            overrides = [*overrides_of(job, folder, self.resumes), format_override("hydra.run.dir", str(path))]
            environment = os.environ | resource_share(self.jobs, slot) | {JOB: "1"}
            status.running()
            try:
                process = subprocess.Popen(
                    [*self.command, *overrides],
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=[lock.fileno()],
                    start_new_session=True,
                )
            except OSError as error:
                status.failed(f"the job could not be started: {error}")
                return
            self.running.add(process)
        late = self._exceeds_timeout(process)
        self.running.discard(process)
        ended = status.read().get("status")
        if late and ended != "done":
            status.failed(f"{TIMED_OUT} after {self.timeout:g} s (hydra.launcher.timeout)")
        elif ended == "running" and self.stopping.is_set():
            status.interrupted("SIGTERM")
        elif ended == "running":
            status.failed(failure_reason(path / LOG, offset, process.returncode))

    def _exceeds_timeout(self, process: subprocess.Popen[bytes]) -> bool:
        """Waits for a job. At the time limit sends SIGTERM, and after the grace period kills the process group."""
        try:
            process.wait(self.timeout)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(self.grace)
            # The group: a rank or a judge that the job started may hang as well.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True
        return False


def resource_share(jobs: int, slot: int) -> dict[str, str]:
    """Environment variables that give a job its share of the threads, and of the GPUs if there are several."""
    found = {"OMP_WAIT_POLICY": "PASSIVE"}
    if jobs > 1:
        threads = max(1, usable_cores() // jobs)
        # One number, or one for each level of nested parallelism.
        given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
        found["OMP_NUM_THREADS"] = str(min(threads, int(given)) if given.isdecimal() and int(given) else threads)
    gpus = torch.cuda.device_count()
    if jobs > 1 and gpus > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        each = max(1, len(visible) // jobs)
        found["CUDA_VISIBLE_DEVICES"] = ",".join((visible * 2)[slot * each % len(visible) :][:each])
    return found


def failure_reason(log: Path, offset: int, code: int) -> str:
    """Why a job failed that did not record a reason, from its log starting at the byte `offset`."""
    lines = log.read_bytes()[offset:].decode("utf-8", errors="replace").splitlines()
    mistakes = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if mistakes:
        return mistakes[-1]
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (", possibly out of memory" if name == "SIGKILL" else "")
    texts = [line.strip() for line in lines if line.strip()]
    return f"ended with exit code {code}; see {log.name}" + (f": {texts[-1]}" if texts else "")
