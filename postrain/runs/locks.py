"""The lock on a run folder, and whether the process of a run is alive."""

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
    """This process: pid, host, and its start time, which differs from that of a later process with the same pid."""
    return {"pid": os.getpid(), "host": platform.node(), "process_started": process_start_time(os.getpid())}


def process_start_time(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot; None if it does not exist or there is no /proc."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The fields after the program name, which may contain anything: state, parent, ...; the 20th is the start time.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def process_ended(record: Mapping[str, Any]) -> bool:
    """Whether the process of a `process_identity` has certainly ended; False for a process on another host."""
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
    """Locks a run folder. The kernel releases the lock of a killed process.

    Raises ConfigError if another process holds the lock, or may hold it on another host, whose locks may be invisible
    here. Raises OSError if the folder is not writable.
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
                f"{folder} may be in use by process {holder.get('pid', '?')} on {holder.get('host', '?')}, which did "
                f"not release its lock; if it has ended, delete {path}"
            )
        file.truncate(0)
        file.write(json.dumps(process_identity()))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def try_lock(file: IO[str]) -> bool:
    """Locks a file; False if another process holds the lock, which may be a child of a dead process."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
