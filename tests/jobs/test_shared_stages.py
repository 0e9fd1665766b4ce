"""Stages that the jobs of a sweep share: the same bits, whoever runs them, and whatever happens to who does."""

from __future__ import annotations

import threading
from pathlib import Path

from postrain.jobs.pipeline_plan import Step
from postrain.jobs.shared_stages import common, digests
from postrain.jobs.stages import Stage


def step(name: str, **config: object) -> Step:
    stage = Stage(name=name, kind="generate", folder=f"1-{name}")
    return Step(stage=stage, words=(), config={"resume": None, **config})


def test_a_digest_is_that_of_the_config_and_of_all_that_it_refers_to():
    asks = {"data": "${stages.a.data}"}
    one = digests([step("a", x=1), step("b", **asks), step("c", x=1)])
    other = digests([step("a", x=2), step("b", **asks), step("c", x=1)])
    assert one["c"] == other["c"]
    assert one["a"] != other["a"]
    assert one["b"] != other["b"]
    assert one == digests([step("a", x=1, resume="here"), step("b", **asks), step("c", x=1)])


def jobs(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A sweep's shared folder, and the stage in two jobs."""
    for name in ("00", "01"):
        (tmp_path / "jobs" / name).mkdir(parents=True)
    return tmp_path / "shared", tmp_path / "jobs" / "00" / "1-a", tmp_path / "jobs" / "01" / "1-a"


def test_the_first_runs_it_and_the_second_waits_and_links(tmp_path, capsys):
    shared, first, second = jobs(tmp_path)
    found: list[Path] = []

    def other() -> None:
        with common(second, shared, "a-1") as place:
            found.append(place)

    with common(first, shared, "a-1") as place:
        assert place == first
        waiting = threading.Thread(target=other)
        waiting.start()
        waiting.join(0.2)
        assert not found
        place.mkdir()
        (place / "done").touch()
    waiting.join()
    assert found == [first]
    assert second.is_symlink()
    assert (second / "done").is_file()
    assert "another job runs this stage (a-1)" in capsys.readouterr().out
    # The sweep may be moved.
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert (moved / "jobs" / "01" / "1-a" / "done").is_file()


def test_a_stage_whose_job_is_gone_and_one_that_was_begun_alone_stay_where_they_are(tmp_path):
    shared, first, second = jobs(tmp_path)
    with common(first, shared, "a-1"):
        pass
    first.parent.rmdir()
    with common(second, shared, "a-1") as place:
        assert place == second
    first.mkdir(parents=True)
    (first / "config.yaml").touch()
    with common(first, shared, "a-1") as place:
        assert place == first
