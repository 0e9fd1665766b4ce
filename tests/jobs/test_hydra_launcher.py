"""Hydra's launchers get the resources of a job; killed, requeued and misplaced jobs."""

import os
import signal
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.utils import JobStatus
from omegaconf import OmegaConf

from postrain.errors import ConfigError
from postrain.jobs.hydra_launcher import Worker, complete_settings, killed_jobs_as_results
from postrain.runs.folder import RunFolder
from postrain.runs.interrupt import Interrupt, Interrupted
from tests.cli.test_main import run
from tests.training_runs import SMALL, records

GPUS = {"accelerator": "gpu", "devices": 2}


@pytest.mark.parametrize(
    ("name", "trainer", "given", "changes"),
    [
        ("submitit_slurm", GPUS, [], {"gpus_per_node": 2, "max_num_timeout": 100}),
        ("submitit_slurm", {"accelerator": "cpu", "devices": 2}, [], {"max_num_timeout": 100}),
        (
            "submitit_slurm",
            GPUS,
            ["+hydra.launcher.gres=gpu:h100:2", "hydra.launcher.max_num_timeout=0"],
            {},
        ),
        ("ray", GPUS, [], {"ray": {"remote": {"num_gpus": 2}}}),
        ("ray", GPUS, ["+hydra.launcher.ray.remote.num_gpus=1"], {}),
        ("joblib", GPUS, [], {}),
    ],
)
def test_a_job_gets_the_gpus_of_its_trainer(name, trainer, given, changes):
    before = {"gpus_per_node": None, "max_num_timeout": 0, "timeout_min": 60, "ray": {"remote": {}}}
    launcher = OmegaConf.create(before)
    lines = list(complete_settings(launcher, name, trainer, given))
    assert OmegaConf.to_container(launcher) == before | changes
    if changes.get("gpus_per_node"):
        assert lines == [
            "each job: 60 min (hydra.launcher.timeout_min), 2 GPUs; at the time limit it saves, is requeued and resumes"
        ]


def test_a_worker_that_does_not_see_the_sweep_says_so(tmp_path):
    assert Worker(task=lambda config: config, folder=tmp_path)(3) == 3
    with pytest.raises(ConfigError, match=r"is not visible on .*: the folder of the sweep must be on a file system"):
        Worker(task=lambda config: config, folder=tmp_path / "elsewhere")(3)


def test_a_killed_job_of_submitit_does_not_end_the_others(monkeypatch):
    class UncompletedJobError(RuntimeError):
        pass

    class FailedJobError(UncompletedJobError):
        pass

    class Job:
        def __init__(self, error=None):
            self.error = error

        def results(self) -> list[Any]:
            if self.error:
                raise self.error
            return ["result"]

    errors = SimpleNamespace(UncompletedJobError=UncompletedJobError, FailedJobError=FailedJobError)
    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace(Job=Job, core=SimpleNamespace(utils=errors)))
    original = Job.results
    with killed_jobs_as_results("submitit_slurm"):
        killed = Job(UncompletedJobError("Job 3 has no output (state: OUT_OF_MEMORY)\nmore")).results()[0]
        failed = Job(FailedJobError("Job 4 failed with trace:\n...\nImportError: no postrain")).results()[0]
        assert Job().results() == ["result"]
    assert Job.results is original
    assert (killed.status, failed.status) == (JobStatus.FAILED, JobStatus.FAILED)
    assert str(killed._return_value) == "Job 3 has no output (state: OUT_OF_MEMORY)"
    assert str(failed._return_value) == "ImportError: no postrain"


@pytest.mark.skipif(not hasattr(signal, "SIGUSR2"), reason="Windows has no SIGUSR2")
def test_handler_that_requeues_the_job_runs_after_the_run_is_saved():
    order = []

    def requeue(number, frame):
        order.append("requeued")
        raise SystemExit(-1)

    original = signal.signal(signal.SIGUSR2, requeue)
    try:
        with pytest.raises(SystemExit) as end, Interrupt():  # noqa: PT012
            try:
                os.kill(os.getpid(), signal.SIGUSR2)
            except Interrupted:
                order.append("saved")
                raise
        assert (order, end.value.code) == (["saved", "requeued"], -1)
        assert signal.getsignal(signal.SIGUSR2) is requeue
    finally:
        signal.signal(signal.SIGUSR2, original)


def test_a_job_that_is_started_again_in_its_folder_resumes(tmp_path):
    folder = RunFolder(tmp_path / "sweep/jobs/00")
    words = ["method=sft", *SMALL, f"hydra.run.dir={folder.path}"]
    assert run(*words) == 0
    whole = records(folder)
    for path in sorted(folder.checkpoints.glob("*.ckpt"))[1:]:
        path.unlink()
    times = [record["time"] for record in folder.metrics.read()]
    assert run(*words) == 0
    assert records(folder) == whole
    # The first update is that of the first start, the later ones were repeated.
    repeated = [record["time"] for record in folder.metrics.read()]
    assert [one == other for one, other in zip(times, repeated, strict=True)] == [True, True, False, False]
