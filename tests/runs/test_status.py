"""The status after every kind of ending, the lock on a folder, and the detection of dead processes."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from postrain.errors import ConfigError, Interrupted
from postrain.jsonl import atomic_write_text
from postrain.runs.folder import RunFolder
from postrain.runs.locks import LOCK, process_ended, process_identity
from postrain.runs.status import Status, StatusRecorder, disk_full


def raises(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


class SafetensorError(Exception):
    """Like the exception of safetensors and tokenizers."""


ENDINGS = {
    "sys.exit()": (lambda: sys.exit(), ConfigError, r"SystemExit at .*test_status.py:\d+; only Ctrl-C"),
    "sys.exit(0)": (lambda: sys.exit(0), ConfigError, r"SystemExit: 0 at "),
    "os._exit(0)": (lambda: os._exit(0), ConfigError, r"SystemExit: os\._exit\(0\) at "),
    "os.execv": (lambda: os.execv("/bin/true", ["true"]), ConfigError, r"SystemExit: os\.execv\('/bin/true', "),
    "KeyboardInterrupt": (raises(KeyboardInterrupt()), ConfigError, "KeyboardInterrupt at "),
    "GeneratorExit": (raises(GeneratorExit()), ConfigError, "GeneratorExit at "),
    "RecursionError": (raises(RecursionError("too deep")), RecursionError, "^too deep$"),
    "MemoryError": (raises(MemoryError()), MemoryError, "^MemoryError$"),
    "ConfigError": (raises(ConfigError("lr: no")), ConfigError, "^lr: no$"),
}


@pytest.mark.parametrize("kind", ENDINGS)
def test_abnormal_exit_is_recorded_as_failed(tmp_path: Path, kind: str) -> None:
    work, expected, reason = ENDINGS[kind]
    status = Status(tmp_path / "status.json")
    with pytest.raises(expected) as caught, StatusRecorder(status):
        work()
    assert not isinstance(caught.value, SystemExit)
    record = status.read()
    assert record["status"] == "failed"
    assert re.search(reason, record["reason"])


def test_signal_is_recorded_as_interrupted(tmp_path: Path) -> None:
    status = Status(tmp_path / "status.json")
    with pytest.raises(Interrupted), StatusRecorder(status):
        raise Interrupted(signal.SIGUSR1)
    assert (status.read()["status"], status.read()["reason"]) == ("interrupted", "SIGUSR1")


def test_os_exit_is_restored_afterwards_and_works_in_a_forked_child(tmp_path: Path) -> None:
    before = os._exit, os.execv, os.execve
    with StatusRecorder(Status(tmp_path / "status.json")):
        child = os.fork()
        if not child:
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert (os._exit, os.execv, os.execve) == before


FULL = {
    "a file": raises(OSError(errno.ENOSPC, "No space left on device", "events.out")),
    "a quota": raises(OSError(errno.EDQUOT, "Disk quota exceeded", "events.out")),
    "safetensors": raises(SafetensorError("Error: I/O error: No space left on device (os error 28)")),
    "writing": raises(ConfigError("cannot write x: No space left on device; choose another place")),
}


@pytest.mark.parametrize("kind", FULL)
def test_full_disk_gives_the_same_error_for_every_file(folder: RunFolder, kind: str) -> None:
    (folder.checkpoints / "update=000004.ckpt").write_text("")
    with pytest.raises(ConfigError) as caught, StatusRecorder(folder.status):
        FULL[kind]()
    remedy = f"the last good checkpoint is {folder.checkpoints}/update=000004.ckpt; free some space and continue with "
    assert str(caught.value).startswith("cannot write ")
    assert str(caught.value).endswith(f"; {remedy}resume={folder.path}")
    assert folder.status.read()["reason"] == str(caught.value)


def test_full_disk_is_found_as_the_cause_of_another_error() -> None:
    error = RuntimeError("writer failed")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert disk_full(error)
    assert not disk_full(OSError(errno.EACCES, "Permission denied"))


def test_status_is_overwritten_in_place_on_a_full_disk(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder.status.running()
    monkeypatch.setattr("postrain.runs.status.atomic_write_text", full)
    folder.status.failed("short")
    assert (folder.status.read()["status"], folder.status.read()["reason"]) == ("failed", "short")
    with pytest.raises(ConfigError, match="No space left"):
        folder.status.running()


@pytest.fixture(scope="module")
def dead() -> int:
    """The pid of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def test_process_ended_only_for_dead_processes_of_this_host(dead: int) -> None:
    mine = process_identity()
    assert not process_ended(mine)
    assert process_ended({**mine, "pid": dead})
    # Another process has the same pid.
    assert process_ended({**mine, "process_started": 1})
    assert not process_ended({**mine, "pid": dead, "host": "elsewhere"})
    for odd in ({}, {"pid": -1}, {"pid": 0}, {"pid": "1"}, {"pid": 10**30}, {"pid": [1]}, {"pid": True}):
        assert not process_ended({"host": platform.node(), **odd})


def test_run_of_a_dead_process_has_failed(tmp_path: Path, dead: int) -> None:
    status = Status(tmp_path / "status.json")
    status.running()
    assert status.current()["status"] == "running"
    atomic_write_text(status.path, json.dumps(status.read() | {"pid": dead}))
    assert status.current()["status"] == "failed"
    assert f"process {dead} ended without a status" in status.current()["reason"]
    status.done()
    assert status.current()["status"] == "done"


@pytest.mark.parametrize("text", ["", "[]", "\0\1", '{"seconds": "x", "started": [1], "status": {}}', "[" * 100_000])
def test_odd_status_is_overwritten(tmp_path: Path, text: str) -> None:
    status = Status(tmp_path / "status.json")
    status.path.write_text(text)
    assert status.current().get("status") != "running"
    status.running()
    status.done()
    assert status.read()["status"] == "done"


def lock_of(folder: RunFolder) -> Any:
    return json.loads((folder.path / LOCK).read_text() or "{}")


def test_folder_is_locked_by_one_process_at_a_time(folder: RunFolder) -> None:
    with folder.locked():
        assert lock_of(folder) == process_identity()
        with pytest.raises(ConfigError, match=rf"is in use by process {os.getpid()} on {platform.node()}; wait") as e:
            folder.locked().__enter__()
        assert "\n" not in str(e.value)
    assert lock_of(folder) == {}
    with folder.locked():
        pass


def test_lock_of_a_dead_process_is_taken_over_and_its_unfinished_files_removed(folder: RunFolder, dead: int) -> None:
    (folder.path / LOCK).write_text(json.dumps({**process_identity(), "pid": dead}))
    (folder.checkpoints / "update=000003.unfinished").write_text("")
    (folder.checkpoints / "update=000002.ckpt").write_text("")
    for update in (2, 3):
        (folder.checkpoints / f"update=00000{update}.shards").mkdir()
    (folder.path / f".status.json.{dead}.tmp").write_text("")
    (folder.path / ".model-x1" / "fresh").mkdir(parents=True)
    with folder.locked():
        assert lock_of(folder) == process_identity()
        assert {path.name for path in folder.path.iterdir()} == {"checkpoints", LOCK}
        assert {path.name for path in folder.checkpoints.iterdir()} == {"update=000002.ckpt", "update=000002.shards"}


def test_lock_of_another_host_is_refused(folder: RunFolder) -> None:
    (folder.path / LOCK).write_text(json.dumps({"pid": 1, "host": "elsewhere", "process_started": 1}))
    with pytest.raises(ConfigError, match=rf"process 1 on elsewhere, which did not release .*delete .*{LOCK}"):
        folder.locked().__enter__()
