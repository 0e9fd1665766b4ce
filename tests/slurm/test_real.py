"""Runs in the jobs of a real Slurm: ranks, sweeps and requeued jobs.

Not run without one; tests/slurm/run.sh starts a Slurm of one node.
"""

import importlib.util
import os
import subprocess
import sys
import time

import pytest

from postrain.runs.folder import RunFolder
from tests.hardware.test_ranks import momentum
from tests.training_runs import CONF, SMALL, final_state, records, small_run

if "SLURM_CONF" not in os.environ:
    pytest.skip("the real Slurm was not run; tests/slurm/run.sh runs it", allow_module_level=True)

TRAIN = [sys.executable, str(CONF.parent / "train.py"), "method=sft", *SMALL]
JOB = """#!/bin/bash
#SBATCH --requeue --open-mode=append --signal=USR1@120
srun {command} name=job-$SLURM_JOB_ID resume=auto trainer=ddp_cpu method.updates=8 trainer.checkpoint_every=100
[ $? -eq 138 ] && scontrol requeue $SLURM_JOB_ID
"""


def run(*words, folder, code=0):
    """Runs a command in a folder; returns its lines on standard output and standard error."""
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout.splitlines(), done.stderr.splitlines()


def wait_for(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.5)


def line_count(file):
    return len(file.read_text().splitlines())


@pytest.mark.parametrize("tasks", [1, 2])
def test_two_ranks_in_a_job_equal_one(tasks, tmp_path):
    """The first rank starts the second one in a job of one task; srun starts both in a job of two."""
    out, _ = run("srun", f"--ntasks={tasks}", *TRAIN, "trainer=ddp_cpu", folder=tmp_path)
    assert len([line for line in out if line.startswith("run folder")]) == 1
    (path,) = tmp_path.glob("runs/*/*/*")
    two, one = RunFolder(path), small_run(tmp_path / "one", "method=sft")
    for mine, theirs in zip(records(two), records(one), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    mine, theirs = (momentum(final_state(folder)) for folder in (two, one))
    assert float((mine - theirs).norm() / theirs.norm()) < 1e-3


def test_tasks_that_the_run_does_not_want_are_refused_in_one_line(tmp_path):
    _, lines = run("srun", "--ntasks=2", *TRAIN, folder=tmp_path, code=2)
    (line,) = [line for line in lines if not line.startswith("srun:")]
    assert line.startswith("error: trainer: srun started 2 processes for a run of 1; use trainer=ddp or trainer=fsdp")
    assert not (tmp_path / "runs").exists()


def test_requeued_job_resumes_its_run(tmp_path):
    script = tmp_path / "job.sh"
    script.write_text(JOB.format(command=" ".join(f"'{word}'" for word in TRAIN)))
    (number,), _ = run("sbatch", "--parsable", "--ntasks=2", "--output=job.out", str(script), folder=tmp_path)
    output = tmp_path / "job.out"
    wait_for(lambda: output.exists() and "update 2/8" in output.read_text())
    run("scancel", "--signal=USR1", number, folder=tmp_path)
    wait_for(lambda: "update 8/8" in output.read_text() and not run("squeue", "-h", "-j", number, folder=tmp_path)[0])
    (path,) = tmp_path.glob("runs/*/*/*")
    whole = small_run(tmp_path / "whole", "method=sft", "method.updates=8")
    assert [record["update"] for record in records(RunFolder(path))] == [*range(9)]
    for mine, theirs in zip(records(RunFolder(path)), records(whole), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-2, abs=1e-3)


@pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="postrain[slurm] is not installed")
def test_sweep_sends_each_job_to_slurm(tmp_path):
    words = ["-m", "seed=0,1", "hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=10"]
    out, _ = run(*TRAIN, *words, folder=tmp_path)
    assert [line.split()[:3] for line in out if line.startswith("  ")][:2] == [
        ["0", "seed=0", "done"],
        ["1", "seed=1", "done"],
    ]


@pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="postrain[slurm] is not installed")
def test_requeued_job_of_a_sweep_resumes(tmp_path):
    """SIGUSR2 is the signal that submitit asks Slurm to send before the time limit."""
    updates = "method.updates=40"
    words = ["-m", "seed=0,1", updates, "trainer.checkpoint_every=1000", "hydra/launcher=submitit_slurm"]
    with subprocess.Popen([*TRAIN, *words], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as sweep:
        wait_for(lambda: sum(lines > 3 for lines in map(line_count, tmp_path.glob("**/metrics.jsonl"))) == 2, 100)
        run("scancel", "--signal=USR2", "--user=root", folder=tmp_path)
        out, _ = sweep.communicate(timeout=300)
    assert sweep.returncode == 0
    done = [line.split()[:3] for line in out.splitlines() if line.startswith("  ")][:2]
    assert done == [["0", "seed=0", "done"], ["1", "seed=1", "done"]]
    assert all("Caught signal SIGUSR2" in log.read_text() for log in tmp_path.glob("**/*_log.err"))
    (path,) = tmp_path.glob("sweeps/*/*/jobs/00-*")
    whole = small_run(tmp_path / "whole", "method=sft", updates)
    assert [record["update"] for record in records(RunFolder(path))] == [*range(41)]
    for mine, theirs in zip(records(RunFolder(path)), records(whole), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-2, abs=1e-3)
