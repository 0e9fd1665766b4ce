"""Jobs in separate processes: a failed or killed job does not stop the others, and its status has the reason."""

from __future__ import annotations

import sys
from pathlib import Path

from hydra.core.plugins import Plugins

from postrain.jobs.graph import Job, overrides_of
from postrain.jobs.launchers import LOG, Local, failure_reason, resource_share
from postrain.jsonl import read_json
from tests.cli.test_main import run

FAKE = (sys.executable, str(Path(__file__).parent / "job.py"))


def job(number: int, do: str) -> Job:
    return Job(number=number, name=do, overrides=(f"do={do}",), folder=f"jobs/{number}")


def test_killed_job_counts_as_failed_and_others_finish(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    ended: list[int] = []
    jobs = [job(0, "die"), job(1, "finish"), job(2, "mistake"), job(3, "finish")]
    Local(jobs=2, command=FAKE)(jobs, tmp_path, lambda job: ended.append(job.number))
    assert sorted(ended) == [0, 1, 2, 3]
    found = [read_json(tmp_path / each.folder / "status.json") for each in jobs]
    assert [each["status"] for each in found] == ["failed", "done", "failed", "done"]
    assert found[0]["reason"] == "killed by SIGKILL, possibly out of memory"
    assert found[2]["reason"] == "method.kl_coef: expected a number"
    assert (tmp_path / "jobs/2" / LOG).read_text() == "error: method.kl_coef: expected a number\n"


def test_started_job_is_resumed(tmp_path):
    assert overrides_of(job(0, "finish"), tmp_path, True) == ["do=finish"]
    (tmp_path / "jobs/0").mkdir(parents=True)
    (tmp_path / "jobs/0/config.yaml").write_text("")
    assert overrides_of(job(0, "finish"), tmp_path, True) == [f"resume={tmp_path}/jobs/0"]
    assert overrides_of(job(0, "finish"), tmp_path, False) == ["do=finish"]


def test_reason_is_the_last_error_line_of_the_log(tmp_path):
    (tmp_path / LOG).write_text("error: one\nTraceback\nerror: two\nbye\n")
    assert failure_reason(tmp_path / LOG, 0, 2) == "two"
    # Only the lines of the last attempt count.
    (tmp_path / LOG).write_text("error: old\nTypeError: new\n")
    assert failure_reason(tmp_path / LOG, 11, 3) == "ended with exit code 3; see log.txt: TypeError: new"
    assert failure_reason(tmp_path / LOG, 0, -6) == "old"


def test_job_with_parent_watchdog_ends_cleanly(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    Local(jobs=1, command=FAKE)([job(0, "watch")], tmp_path, lambda job: None)
    assert read_json(tmp_path / "jobs/0/status.json")["status"] == "done"
    assert (tmp_path / "jobs/0" / LOG).read_text() == ""


def test_job_beyond_its_time_limit_is_killed_and_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    # The first job ignores SIGTERM, the second one saves; both count as timed out.
    jobs = [job(0, "hang"), job(1, "save")]
    Local(jobs=2, command=FAKE, timeout=1.0, grace=0.2)(jobs, tmp_path, lambda job: None)
    for each in jobs:
        found = read_json(tmp_path / each.folder / "status.json")
        assert (found["status"], found["reason"]) == ("failed", "timed out after 1 s (hydra.launcher.timeout)")
    in_time = job(2, "finish")
    Local(jobs=1, command=FAKE, timeout=600.0)([in_time], tmp_path, lambda job: None)
    assert read_json(tmp_path / in_time.folder / "status.json")["status"] == "done"


def test_job_whose_folder_cannot_be_written_stops_no_other(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    ended: list[int] = []
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/0").write_text("a file")
    Local(jobs=1, command=FAKE)([job(0, "finish"), job(1, "finish")], tmp_path, lambda job: ended.append(job.number))
    assert ended == [1]
    assert capsys.readouterr().err == (
        f"error: finish: cannot write {tmp_path}/jobs/0: File exists; remove it, or choose another folder with "
        "paths.sweeps=DIRECTORY\n"
    )


def test_job_that_cannot_start_counts_as_failed(tmp_path):
    Local(jobs=1, command=("/no/such/program",))([job(0, "finish")], tmp_path, lambda job: None)
    assert read_json(tmp_path / "jobs/0/status.json")["reason"].startswith("the job could not be started")


def test_jobs_share_the_cores(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert resource_share(4, 0) == {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "2"}
    assert resource_share(16, 0)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert resource_share(2, 0)["OMP_NUM_THREADS"] == "1"
    # OpenMP reads one number for each level of nested parallelism, and ignores what is no number.
    for given, expected in (("3,1", "3"), (" 2 ", "2"), ("many", "4"), ("0", "4")):
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        assert resource_share(2, 0)["OMP_NUM_THREADS"] == expected
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert [resource_share(2, slot)["CUDA_VISIBLE_DEVICES"] for slot in range(2)] == ["4,5", "6,7"]
    assert [resource_share(5, slot)["CUDA_VISIBLE_DEVICES"] for slot in range(5)] == ["4", "5", "6", "7", "4"]


def test_launcher_that_cannot_reach_its_cluster_is_one_line(tmp_path, monkeypatch, capsys):
    class Unreachable:
        def launch(self, job_overrides, initial_job_idx):
            raise ConnectionError("Could not find any running\nRay instance.")

    monkeypatch.setattr(Plugins, "instantiate_launcher", lambda *_, **__: Unreachable())
    code = run("-m", "method=sft", "seed=0,1", "hydra/launcher=basic", f"paths.sweeps={tmp_path}")
    assert (code, capsys.readouterr().err) == (
        2,
        "error: hydra/launcher=basic: could not start the jobs: Could not find any running Ray instance.\n",
    )
