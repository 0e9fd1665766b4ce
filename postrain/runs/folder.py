"""The run folder: its file names, and how it is created, opened and locked.

Other modules write the files: status.py, manifest.py, training/record_files.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from postrain.errors import ConfigError
from postrain.jsonl import JsonLines, update_of
from postrain.runs.locks import locked
from postrain.runs.status import Status, clear_leftovers, writing


def config_hash(config: Mapping[str, Any]) -> str:
    """A hash of a config, eight hex digits."""
    text = json.dumps(config, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class RunFolder:
    """runs/<method>/<model>/<time>-<hash>/ and the files in it."""

    path: Path

    @classmethod
    def create(cls, base: Path, method: str, model: str, config_hash: str, *, trains: bool = True) -> Self:
        """A new folder, also for runs that start in the same second."""
        return cls.at(new_directory(base, method, model, config_hash), trains=trains)

    @classmethod
    def at(cls, path: Path, *, trains: bool = True) -> Self:
        """The folder of a new run at `path`; with checkpoints/ if the run `trains`."""
        folder = cls(path)
        with writing(path):
            (folder.checkpoints if trains else path).mkdir(parents=True, exist_ok=True)
        return folder

    @classmethod
    def open(cls, path: Path | str, key: str = "resume") -> Self:
        """The folder of an earlier run; messages name `key`."""
        if not isinstance(path, str | Path):
            raise ConfigError(f"{key}: expected a run folder, such as runs/ppo/nano/..., got {path!r}")
        folder = cls(Path(path).expanduser())
        check_contained(folder.path)
        if not folder.path.is_dir():
            raise ConfigError(f"{key}: there is no folder {folder.path}; give a run folder, such as runs/ppo/nano/...")
        if not folder.config.is_file():
            files = ", ".join(sorted(item.name for item in folder.path.iterdir())[:8]) or "nothing"
            raise ConfigError(f"{key}: {folder.path} is not a run folder: it has no config.yaml (it has: {files})")
        folder.status.check_version(key)
        return folder

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the folder and removes unfinished files of a killed process."""
        with ExitStack() as stack:
            with writing(self.path):
                stack.enter_context(locked(self.path))
                clear_leftovers(self.path)
            yield

    @property
    def name(self) -> str:
        """The name of the run in trackers: <method>-<model>-<time>-<hash>."""
        return "-".join(self.path.parts[-3:])

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"

    @property
    def fork(self) -> Path:
        """Of a run that was started with fork=: the other run, the update, and what was changed."""
        return self.path / "fork.json"

    @property
    def changes(self) -> JsonLines:
        """Of a run that was resumed with other settings: the update, and what was changed."""
        return JsonLines(self.path / "changes.jsonl")

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def metrics(self) -> JsonLines:
        return JsonLines(self.path / "metrics.jsonl")

    @property
    def last_update(self) -> int:
        """The last update that the run has recorded."""
        return int(max(map(update_of, self.metrics.read()), default=0))

    @property
    def samples(self) -> JsonLines:
        return JsonLines(self.path / "samples.jsonl")

    @property
    def held_out(self) -> JsonLines:
        return JsonLines(self.path / "held_out.jsonl")

    @property
    def diagnostics(self) -> JsonLines:
        """diagnostics.jsonl, or explanations.jsonl in the folder of an earlier version."""
        earlier = self.path / "explanations.jsonl"
        return JsonLines(earlier if earlier.is_file() else self.path / "diagnostics.jsonl")

    @property
    def status(self) -> Status:
        return Status(self.path / "status.json")


WANDB_LOG = ("logs", "debug-core.log")
"""A log that wandb links in folders of its own, and that nothing here reads or writes; loggers.py removes new ones."""


def check_contained(folder: Path) -> None:
    """Raises ConfigError for a folder with links that lead out of it, or with devices or pipes.

    A run writes to the files of its folder, which may come from an untrusted source. The folder itself may be a link,
    and a job of a sweep may link to stages of the sweep's other jobs (jobs/shared_stages.py).
    """
    root = folder.resolve()
    roots = [root, *(above for above in root.parents[1:2] if (above / "sweep.yaml").is_file())]
    for directory, directories, files in os.walk(root):
        for path in (Path(directory, name) for name in (*directories, *files)):
            if path.parts[-2:] == WANDB_LOG and path.parts[-4:-3] == ("wandb",):
                continue
            if path.is_symlink() and not any(path.resolve().is_relative_to(each) for each in roots):
                raise ConfigError(f"{path} is a link to {path.resolve()}, out of the folder; replace it with a copy")
            if path.exists() and not (path.is_file() or path.is_dir()):
                raise ConfigError(f"{path} is neither a file nor a directory; remove it")


def new_directory(base: Path, *names: str) -> Path:
    """Creates a new directory <base>/<name>/.../<time>-<last name>/; the last name is a hash."""
    parent = base.joinpath(*map(file_name, names[:-1]))
    stem = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{names[-1]}"
    with writing(parent):
        parent.mkdir(parents=True, exist_ok=True)
        return _make_new(parent, stem)


def file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-") or "run"


def _make_new(parent: Path, stem: str) -> Path:
    attempt = 1
    while True:
        path = parent / (stem if attempt == 1 else f"{stem}-{attempt}")
        try:
            path.mkdir()
        except FileExistsError:
            attempt += 1
        else:
            return path


def is_started(folder: Path) -> bool:
    """Whether a folder holds a run or a pipeline that can be resumed."""
    return any((folder / name).is_file() for name in ("config.yaml", "pipeline.yaml"))
