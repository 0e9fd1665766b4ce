"""Stages that jobs of a sweep share: the first job that needs one runs it in its own folder, the others link to it.

Stages are the same where their hashes are (graph.digests). <sweep>/shared/<stage>-<hash>.json names the folder, for
good: whichever job resumes a stage, after a failure or a kill, does so there. A job holds a lock on the stage it runs;
the kernel releases the lock of a process that dies.
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
    """The folder where the stage `name`, with its hash, is run or was run; no other job works on it meanwhile.

    `own` is its path in this job: a folder where this job runs the stage, else a link.
    """
    with writing(shared):
        shared.mkdir(parents=True, exist_ok=True)
        lock = (shared / f"{name}.lock").open("w")
    with lock:
        if not try_lock(lock):
            print(f"another job runs this stage ({name}); waiting for it", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        place = _claimed(own, shared, shared / f"{name}.json")
        with writing(own):
            if own.is_symlink():
                own.unlink()
            if own != place:
                # Relative, so that a sweep can be moved.
                own.symlink_to(os.path.relpath(place, own.parent), target_is_directory=True)
        yield place


def _claimed(own: Path, shared: Path, claim: Path) -> Path:
    """The folder of the job that has claimed the stage; `own` where none has, or that job's folder is gone."""
    # A folder with something in it was begun before there was anything to share.
    if not own.is_symlink() and own.is_dir() and any(own.iterdir()):
        return own
    if folder := read_json(claim).get("folder"):
        place = Path(os.path.normpath(shared / str(folder)))
        if place.parent.is_dir():
            return place
    with writing(claim):
        atomic_write_text(claim, json.dumps({"folder": os.path.relpath(own, shared)}) + "\n")
    return own
