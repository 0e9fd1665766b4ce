"""Stages that jobs of a sweep have in common: the first job to come runs one, in its own folder, the others link to it.

Stages are the same where their composed configs are, and those of the stages they refer to. Who runs one stands in
<sweep>/shared/<stage>-<hash>.json, for good: whoever goes on with it, after a failure or a kill, does so there. A job
holds a lock on the stage it runs; the kernel takes it from a job that dies.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from postrain.jobs.pipeline_plan import Step, known, resolved
from postrain.jsonl import atomic_write_text, read_json
from postrain.runs.folder import config_hash, writing
from postrain.runs.resume import settings


def digests(steps: Sequence[Step]) -> dict[str, str]:
    """A hash for each stage, by name: equal ones are runs with the same bits."""
    found: dict[str, str] = {}
    for step in steps:
        earlier = [replace(each.stage, folder=found.get(each.stage.name, each.stage.folder)) for each in steps]
        config, _ = resolved(step, known(earlier, steps, Path()))
        found[step.stage.name] = config_hash({"stage": step.stage.name, "config": settings(config)})
    return found


@contextmanager
def common(own: Path, shared: Path, name: str) -> Iterator[Path]:
    """Where the stage `name`, with its hash, is run or was run; nobody else works on it meanwhile.

    `own` is where it stands in this job: a folder where it is this job's to run, else a link.
    """
    with writing(shared):
        shared.mkdir(parents=True, exist_ok=True)
        lock = (shared / f"{name}.lock").open("w")
    with lock:
        _acquire(lock.fileno(), name)
        place = _claimed(own, shared, shared / f"{name}.json")
        with writing(own):
            _link(own, place)
        yield place


def _acquire(lock: int, name: str) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"another job runs this stage ({name}); waiting for it", flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)


def _claimed(own: Path, shared: Path, claim: Path) -> Path:
    """The place of the job that has claimed the stage; this one's where nobody has, or that job's folder is gone."""
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


def _link(own: Path, place: Path) -> None:
    """`own` as a link to `place`, relative, so that a sweep can be moved."""
    if own.is_symlink():
        own.unlink()
    if own != place:
        own.symlink_to(os.path.relpath(place, own.parent), target_is_directory=True)
