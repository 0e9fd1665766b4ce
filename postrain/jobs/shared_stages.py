"""Stages that jobs of a sweep share: the first job that needs one runs it in its own folder, the others link to it.

Two stages are the same if their hashes are equal (graph.digests). <sweep>/shared/<stage>-<hash>.json records the
folder; any job that resumes the stage after a failure does so in that folder. A job holds a file lock on the stage it
runs; the kernel releases the lock when the process ends.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from postrain.jsonl import atomic_write_text, read_json
from postrain.runs.folder import writing
from postrain.runs.locks import try_lock


@contextmanager
def shared_folder(own: Path, shared: Path, name: str) -> Iterator[Path]:
    """The folder of the stage `name` (with its hash), locked against other jobs.

    `own` is the path of the stage in this job: the folder itself if this job runs the stage, else a link to it.
    """
    with writing(shared):
        shared.mkdir(parents=True, exist_ok=True)
        lock = (shared / f"{name}.lock").open("w")
    with lock:
        if not try_lock(lock):
            print(f"another job runs this stage ({name}); waiting for it", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        path = _claimed(own, shared, shared / f"{name}.json")
        with writing(own):
            if own.is_symlink():
                own.unlink()
            if own != path:
                # Relative, so that a sweep can be moved.
                own.symlink_to(os.path.relpath(path, own.parent), target_is_directory=True)
        yield path


def _claimed(own: Path, shared: Path, claim: Path) -> Path:
    """The folder of the job that claimed the stage; `own` if none did or if that folder was deleted."""
    # This job started the stage before a claim existed.
    if not own.is_symlink() and own.is_dir() and any(own.iterdir()):
        return own
    if folder := read_json(claim).get("folder"):
        claimed = Path(os.path.normpath(shared / str(folder)))
        if claimed.parent.is_dir():
            return claimed
    with writing(claim):
        atomic_write_text(claim, json.dumps({"folder": os.path.relpath(own, shared)}) + "\n")
    return own
