"""Stages that the jobs of a sweep share: one job runs them, the others wait and link to its folder."""

from __future__ import annotations

import threading
from pathlib import Path

from postrain.jobs.graph import Job, digests
from postrain.jobs.shared_stages import shared_folder


def stage(name: str, **config: object) -> Job:
    return Job(name=name, kind="generate", folder=f"1-{name}", config={"resume": None, **config})


def test_digest_covers_the_config_and_the_stages_it_refers_to():
    reference = {"data": "${stages.a.data}"}
    one = digests([stage("a", x=1), stage("b", **reference), stage("c", x=1)])
    other = digests([stage("a", x=2), stage("b", **reference), stage("c", x=1)])
    assert one["c"] == other["c"]
    assert one["a"] != other["a"]
    assert one["b"] != other["b"]
    assert one == digests([stage("a", x=1, resume="here"), stage("b", **reference), stage("c", x=1)])


def jobs(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A sweep's shared folder, and the stage in two jobs."""
    for name in ("00", "01"):
        (tmp_path / "jobs" / name).mkdir(parents=True)
    return tmp_path / "shared", tmp_path / "jobs" / "00" / "1-a", tmp_path / "jobs" / "01" / "1-a"


def test_second_job_waits_for_a_shared_stage_and_links_to_it(tmp_path, capsys):
    shared, first, second = jobs(tmp_path)
    found: list[Path] = []

    def other() -> None:
        with shared_folder(second, shared, "a-1") as directory:
            found.append(directory)

    with shared_folder(first, shared, "a-1") as directory:
        assert directory == first
        waiting = threading.Thread(target=other)
        waiting.start()
        waiting.join(0.2)
        assert not found
        directory.mkdir()
        (directory / "done").touch()
    waiting.join()
    assert found == [first]
    assert second.is_symlink()
    assert (second / "done").is_file()
    assert "another job runs this stage (a-1)" in capsys.readouterr().out
    # The sweep may be moved.
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert (moved / "jobs" / "01" / "1-a" / "done").is_file()


def test_stage_stays_in_its_job_if_the_claimed_folder_is_gone_or_it_started_without_a_claim(tmp_path):
    shared, first, second = jobs(tmp_path)
    with shared_folder(first, shared, "a-1"):
        pass
    first.parent.rmdir()
    with shared_folder(second, shared, "a-1") as directory:
        assert directory == second
    first.mkdir(parents=True)
    (first / "config.yaml").touch()
    with shared_folder(first, shared, "a-1") as directory:
        assert directory == first
