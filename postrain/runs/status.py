"""status.json, and the context that writes it at the end of a run.

Imports neither torch nor lightning, since the report reads folders without them.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from postrain import __version__
from postrain.config.masking import masked_text
from postrain.config.override_text import resume_word
from postrain.errors import ConfigError, Interrupted, one_line
from postrain.jsonl import Record, atomic_write_text, number, read_json
from postrain.runs.locks import process_ended, process_identity

State = Literal["running", "done", "failed", "interrupted"]
EARLIEST = "0.1.0"
"""The version of folders that do not record one."""
SHARDS = ".shards"
"""The suffix of the folder with the shards of a checkpoint, beside its file."""
FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_WORDS = ("No space left on device", "Disk quota exceeded")


@contextmanager
def writing(path: Path, remedy: str = "choose another directory with paths.output=DIRECTORY") -> Iterator[None]:
    """Turns a failed write (read-only, full, not a directory) into a one-line ConfigError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"cannot write {path}: {reason}; {remedy}") from error


@dataclass(frozen=True)
class Status:
    """status.json: running, done, failed or interrupted, with the time and the process.

    `seconds` is the sum over the sessions of a resumed run, without sessions that were killed.
    """

    path: Path

    def running(self) -> None:
        """The run has started or resumed."""
        self._write("running", "")

    def done(self) -> None:
        """The run has completed."""
        self._write("done", "")

    def failed(self, reason: str) -> None:
        """The run ended with an error; `reason` is the printed line."""
        self._write("failed", reason)

    def interrupted(self, reason: str) -> None:
        """A signal stopped the run; it can be resumed."""
        self._write("interrupted", reason)

    def set(self, status: State, reason: str) -> None:
        """Writes any status."""
        self._write(status, reason)

    def read(self) -> Record:
        """The content of the file; {} if it is missing or is not a JSON object."""
        return read_json(self.path)

    def first_started(self) -> datetime:
        """The local time of the first start; chat templates with a date use it also after a resume."""
        try:
            return datetime.fromisoformat(str(self.read().get("began")))
        except ValueError:
            return datetime.now()

    def check_version(self, key: str = "resume") -> None:
        """Raises ConfigError for a folder of a version whose results this version does not reproduce bit for bit."""
        record = self.read()
        made = str(record.get("version", EARLIEST)) if record else __version__
        if made.split(".")[:2] != __version__.split(".")[:2]:
            raise ConfigError(
                f"{key}: {self.path.parent} was made by postrain {made}, and postrain {__version__} gives different "
                f"results; use postrain {made}, or start a new run"
            )

    def current(self) -> Record:
        """The content of the file, but failed if the process of the run has ended, as after a SIGKILL or a crash.
        Processes on other hosts count as running."""
        record = self.read()
        if record.get("status") != "running" or not process_ended(record):
            return record
        reason = f"its process {record['pid']} ended without a status (killed, out of memory, or crashed)"
        return {**record, "status": "failed", "reason": reason}

    def _write(self, status: State, reason: str) -> None:
        now, before = round(time.time(), 3), self.read()
        seconds, started = number(before.get("seconds")) or 0.0, number(before.get("started"))
        if status == "running" or started is None:
            started = now
        else:
            seconds += 0.0 if before.get("status") != "running" else now - started
        reason = masked_text(reason)
        record = {"status": status, "reason": reason, "started": started, "written": now, "seconds": round(seconds, 3)}
        record["began"] = before.get("began", datetime.now().isoformat(timespec="seconds"))
        record["version"] = before.get("version", __version__)
        text = json.dumps(record | process_identity(), indent=2) + "\n"
        with writing(self.path, "free some space or choose another directory with paths.output=DIRECTORY"):
            try:
                atomic_write_text(self.path, text)
            except OSError:
                if status == "running":
                    raise
                self._overwrite(text, status)

    def _overwrite(self, text: str, status: State) -> None:
        """Writes in place on a full disk, into the file's old block. An error here must not hide why the run failed."""
        try:
            with self.path.open("r+b") as file:
                file.write(text.encode("utf-8", errors="replace"))
                file.truncate()
        except OSError as error:
            if status == "done":
                raise
            print(f"warning: {self.path} could not be written: {error}", file=sys.stderr)


class StatusRecorder:
    """A context that writes running, then done, interrupted or failed with the reason.

    Errors propagate. A full disk, and calls that would end the process without an error (sys.exit(0) or os._exit(0) in
    a user's function), become a one-line ConfigError.
    """

    def __init__(self, status: Status) -> None:
        self.status = status
        self.patched: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self.status.running()
        self.patched = {name: getattr(os, name) for name in ("_exit", "execv", "execve")}
        for name, original in self.patched.items():
            setattr(os, name, _raise_instead(name, original, os.getpid()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, original in self.patched.items():
            setattr(os, name, original)
        if error is None:
            self.status.done()
        elif isinstance(error, Interrupted):
            error.folder = self.status.path.parent
            self.status.interrupted(error.signal.name)
        else:
            reported = reported_error(error, self.status.path.parent)
            self.status.failed(str(reported) or type(reported).__name__)
            if reported is not error:
                raise reported from error


def _raise_instead(name: str, original: Callable[..., Any], owner: int) -> Callable[..., Any]:
    """Replaces a function that ends this process by an exception; forked children may still call it."""

    def call(*arguments: Any) -> Any:
        if os.getpid() != owner:
            return original(*arguments)
        raise SystemExit(f"os.{name}{arguments!r:.80}".replace(",)", ")"))

    return call


def reported_error(error: BaseException, folder: Path) -> BaseException:
    """The error to report to the user; see StatusRecorder."""
    if disk_full(error):
        path = getattr(error, "filename", None) or folder
        line = str(error) if isinstance(error, ConfigError) else f"cannot write {path}: {FULL_WORDS[0]}"
        return ConfigError(f"{line.partition('; ')[0]}; {space_remedy(folder)}")
    if isinstance(error, ConfigError):
        return error
    if not isinstance(error, Exception):
        frames = traceback.extract_tb(error.__traceback__)
        where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        what = one_line(error, limit=None, with_type=True)
        return ConfigError(f"the run was ended by {what}{where}; only Ctrl-C and signals may end it early")
    return error


def disk_full(error: BaseException | None) -> bool:
    """Whether a full disk caused an error; safetensors and tokenizers raise other types for it."""
    while error is not None:
        if (isinstance(error, OSError) and error.errno in FULL) or any(word in str(error) for word in FULL_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of the run in a folder, oldest first."""
    return sorted((folder / "checkpoints").glob("update=*.ckpt"))


def remove_checkpoint(path: Path) -> None:
    """Deletes a checkpoint; its shards last, so that they are never missing."""
    path.unlink(missing_ok=True)
    shutil.rmtree(path.with_suffix(SHARDS), ignore_errors=True)


def last_checkpoint(folder: Path) -> str:
    """The newest checkpoint, as part of an error message."""
    found = checkpoints(folder)
    return f"the last good checkpoint is {found[-1]}" if found else "no checkpoint was written yet"


def space_remedy(folder: Path) -> str:
    """The remedy for a full disk."""
    if not (folder / "checkpoints").is_dir():
        return "free some space and restart"
    return f"{last_checkpoint(folder)}; free some space and continue with {resume_word(folder)}"


def clear_leftovers(folder: Path) -> None:
    """Removes unfinished files of a killed process."""
    for path in [*folder.glob("checkpoints/*.unfinished"), *folder.glob(".*.tmp")]:
        path.unlink(missing_ok=True)
    shards = [path for path in folder.glob(f"checkpoints/*{SHARDS}") if not path.with_suffix(".ckpt").exists()]
    for path in [*shards, *folder.glob(".model-*")]:
        shutil.rmtree(path, ignore_errors=True)
