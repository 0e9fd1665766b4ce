"""Which process a run belongs to, whether it is alive, and the lock on a run folder."""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from postrain.errors import ConfigError
from postrain.jsonl import Record, read_json

LOCK = ".run.lock"


def process_identity() -> Record:
    """This process: pid, host, and the start time that tells it from a later process with the same pid."""
    return {"pid": os.getpid(), "host": platform.node(), "process_started": process_start_time(os.getpid())}


def process_start_time(pid: int) -> int | None:
    """When a process began, in clock ticks since boot; None for one that is not there, and where there is no /proc."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # After the program's name, which may hold anything: state, parent, ..., the 20th of them is the start time.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def process_ended(record: Mapping[str, Any]) -> bool:
    """Whether the process of an `identity` has ended for certain; False for one on another host."""
    pid, host = record.get("pid"), record.get("host")
    if not isinstance(pid, int) or isinstance(pid, bool) or not 0 < pid < 2**31 or host != platform.node():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return Path("/proc/self").exists() and process_start_time(pid) != record.get("process_started")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps every other process out of a run folder. The kernel frees the lock of a process that was killed.

    Raises ConfigError if another process has the folder, or may have it: another host need not see the locks of this
    one. OSError if the folder cannot be written.
    """
    path = folder / LOCK
    with path.open("a") as file:
        holder = read_json(path)
        if not try_lock(file):
            if not process_ended(holder):
                who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
                raise ConfigError(f"{folder} is in use by {who}; wait for it to end, or stop it first")
        elif holder and holder.get("host") != platform.node():
            raise ConfigError(
                f"{folder} was last used by process {holder.get('pid', '?')} on {holder.get('host', '?')}, which did "
                f"not say that it ended; if it has, delete {path}"
            )
        file.truncate(0)
        file.write(json.dumps(process_identity()))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def try_lock(file: IO[str]) -> bool:
    """Takes the lock of a file; False where another process has it: a child of a dead process may still hold its."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
