"""Jobs in processes of their own: whatever happens to one, the others go on and its status says what it was."""

from __future__ import annotations

import sys
from pathlib import Path

from postrain.jsonl import read_json
from postrain.sweep.launch import LOG, Local, last_words, share, words_of
from postrain.sweep.plan import Job

FAKE = (sys.executable, str(Path(__file__).parent / "made.py"))


def job(number: int, do: str) -> Job:
    return Job(number=number, label=do, settings={}, seed=None, words=(f"do={do}",), hash="", folder=f"jobs/{number}")


def test_a_killed_job_is_a_failed_one_and_the_others_finish(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    ended: list[int] = []
    jobs = [job(0, "die"), job(1, "finish"), job(2, "mistake"), job(3, "finish")]
    Local(jobs=2, command=FAKE)(jobs, tmp_path, lambda job: ended.append(job.number))
    assert sorted(ended) == [0, 1, 2, 3]
    found = [read_json(tmp_path / each.folder / "status.json") for each in jobs]
    assert [each["status"] for each in found] == ["failed", "done", "failed", "done"]
    assert found[0]["reason"] == "killed by SIGKILL, perhaps for want of memory"
    assert found[2]["reason"] == "method.kl_coef: expected a number"
    assert (tmp_path / "jobs/2" / LOG).read_text() == "error: method.kl_coef: expected a number\n"


def test_a_begun_job_goes_on(tmp_path):
    assert words_of(job(0, "finish"), tmp_path) == ["do=finish"]
    (tmp_path / "jobs/0").mkdir(parents=True)
    (tmp_path / "jobs/0/config.yaml").write_text("")
    assert words_of(job(0, "finish"), tmp_path) == [f"resume={tmp_path}/jobs/0"]


def test_the_last_mistake_is_the_reason(tmp_path):
    (tmp_path / LOG).write_text("error: one\nTraceback\nerror: two\nbye\n")
    assert last_words(tmp_path / LOG, 2) == "two"
    (tmp_path / LOG).write_text("Segmentation\n")
    assert last_words(tmp_path / LOG, 3) == "ended with exit code 3; see log.txt"


def test_jobs_share_the_cores(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    assert share(4, 0) == {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "2"}
    assert share(16, 0)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert [share(3, slot)["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["4", "6", "4"]
