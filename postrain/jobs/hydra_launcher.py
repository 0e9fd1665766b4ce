"""Hydra's launchers (joblib, submitit_slurm, ray, ...) with what jobs of post-training need from them.

A job gets the GPUs that its `trainer` asks for. A job of Slurm that reaches its time limit or is preempted saves, is
requeued and resumes. A worker that does not see the sweep's folder says so, and a killed job does not end the others.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

# Private: instantiate_launcher needs a HydraContext, which needs this; there is no public constructor.
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext
from omegaconf import open_dict, read_write

from postrain.config.override_text import format_override, key_of
from postrain.errors import ConfigError, one_line
from postrain.jobs.graph import Job, overrides_of
from postrain.runs.folder import Status
from postrain.types import Count

# Submitit's default is 0: a job ends for good at its first time limit.
REQUEUES = 100


@dataclass(frozen=True, kw_only=True)
class Worker:
    """Runs the config of a job in a worker, which may be another machine."""

    task: Callable[[Any], Any]
    folder: Path
    """The sweep's folder, absolute."""

    def __call__(self, config: Any) -> Any:
        if not self.folder.is_dir():
            raise ConfigError(
                f"{self.folder} is not visible on {socket.gethostname()}: the folder of the sweep must be on a file "
                "system that all nodes share; set paths.sweeps"
            )
        return self.task(config)


@dataclass(frozen=True, kw_only=True)
class HydraLauncher:
    """One of Hydra's launchers. Jobs get their folder as hydra.sweep.subdir."""

    task: Callable[[Any], Any]
    """Runs a job's config in the worker."""
    forced: Callable[[Sequence[str]], list[str]]
    """Overrides as Hydra takes them."""
    jobs: Count
    trainer: Mapping[str, Any]
    """The `trainer` group: which devices a job needs."""
    resumes: bool = True

    def __call__(self, jobs: Sequence[Job], folder: Path, ended: Callable[[Job], None]) -> None:
        if not jobs:
            return
        config: Any = HydraConfig.instance().cfg
        name = config.hydra.runtime.choices["hydra/launcher"]
        config = config.copy()
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.sweep.dir = str(folder)
            for line in complete_settings(config.hydra.launcher, name, self.trainer, config.hydra.overrides.hydra):
                print(line, flush=True)
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=HydraContext(config_loader=GlobalHydra.instance().config_loader(), callbacks=Callbacks()),
            task_function=Worker(task=self.task, folder=folder.resolve()),
            config=config,
        )
        home = format_override("hydra.sweep.dir", str(folder))
        overrides = [
            [*self.forced(overrides_of(job, folder, self.resumes)), home, f"hydra.sweep.subdir={job.folder}"]
            for job in jobs
        ]
        try:
            with killed_jobs_as_results(name):
                returns: Sequence[JobReturn | None] = launcher.launch(overrides, initial_job_idx=jobs[0].number)
        except BrokenExecutor as error:  # a killed worker ends joblib's whole pool
            print(f"warning: {error}", file=sys.stderr)
            returns = [None] * len(jobs)
        except ConfigError:
            raise
        except Exception as error:  # whatever a launcher raises if its cluster refuses the jobs or cannot be reached
            reason = one_line(error, limit=None)
            raise ConfigError(f"hydra/launcher={name}: could not start the jobs: {reason}") from error
        for job, returned in zip(jobs, returns, strict=True):
            self._record(Status(folder / job.folder / "status.json"), returned)
            ended(job)

    def _record(self, status: Status, returned: JobReturn | None) -> None:
        """Records a failure that the job could not write itself."""
        ended = returned is not None and returned.status is JobStatus.COMPLETED
        if not ended and status.read().get("status") in (None, "running", "interrupted"):
            status.path.parent.mkdir(parents=True, exist_ok=True)
            error = None if returned is None else returned._return_value
            status.failed("its worker was killed" if error is None else str(error) or type(error).__name__)


def complete_settings(launcher: Any, name: str, trainer: Mapping[str, Any], given: Sequence[str]) -> Iterator[str]:
    """Sets what a launcher's defaults leave out, unless `given` overrides set it; yields lines about it."""
    chosen = {key_of(word).removeprefix("hydra.launcher.") for word in given}
    gpus = int(trainer.get("devices") or 1) if trainer.get("accelerator") == "gpu" else 0
    if name == "submitit_slurm":
        if gpus and not chosen & {"gpus_per_node", "gpus_per_task", "gres"}:
            launcher.gpus_per_node = gpus
        if "max_num_timeout" not in chosen:
            launcher.max_num_timeout = REQUEUES
        has = f", {launcher.gpus_per_node} GPU{'s' * (launcher.gpus_per_node > 1)}" if launcher.gpus_per_node else ""
        yield (
            f"each job: {launcher.timeout_min} min (hydra.launcher.timeout_min){has}; at the time limit it saves, is "
            f"requeued and resumes"
        )
    elif name == "ray" and gpus and not any(word.startswith("ray.remote") for word in chosen):
        launcher.ray.remote.num_gpus = gpus


@contextmanager
def killed_jobs_as_results(name: str) -> Iterator[None]:
    """Inside the block, a job of submitit that ended without a result returns its error; submitit raises it for the
    first such job and abandons the others."""
    if not name.startswith("submitit"):
        yield
        return
    submitit = import_module("submitit")
    original, errors = submitit.Job.results, submitit.core.utils

    def results(job: Any) -> list[Any]:
        try:
            return original(job)
        except errors.UncompletedJobError as error:
            lines = str(error).strip().splitlines() or ["no output"]
            # A trace ends with the reason; otherwise the first line has the state of the job.
            reason = lines[-1] if isinstance(error, errors.FailedJobError) else lines[0]
            return [JobReturn(status=JobStatus.FAILED, _return_value=ConfigError(reason.strip()))]

    submitit.Job.results = results
    try:
        yield
    finally:
        submitit.Job.results = original
