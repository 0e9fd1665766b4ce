"""Runs a Python program in the sandbox of sandbox_process.py, which documents what is contained and what is not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from postrain.rewards import sandbox_process

SECONDS_TO_START = 10
"""What starting and sweeping up may take on a busy machine, besides the program's own time."""
# Not `-I`: it would make the order of sets, and with it some scores, differ from run to run. The installed packages are
# told by the job, since `site` would take half the time of a start.
PYTHON = (sys.executable, "-S", "-P", "-s", "-B", "-X", "utf8")
PACKAGES = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
ENVIRONMENT = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Limits:
    """What one program may take."""

    seconds: int
    """Of processor time; five times that on the clock."""
    memory_mb: int


@dataclass(frozen=True)
class Outcome:
    """How a program ended."""

    output: str
    """What it wrote; with tests, one character for each that was reached, 1 for those that passed."""
    status: int
    """Its exit status, or that of `sandbox_process`."""

    @property
    def limited(self) -> bool:
        """True where it was killed for taking too much time, or too much else."""
        return self.status == sandbox_process.OUT_OF_LIMITS


def execute(program: str, *, tests: Sequence[str] | None, stdin: str = "", limits: Limits) -> Outcome:
    """Runs a Python program in a process and a temporary folder of its own; nothing of either is left.

    With `tests`, it is their module and says nothing; without, it is a script that reads `stdin`.
    """
    job = {"program": program, "tests": tests, "packages": PACKAGES, **asdict(limits)}
    # The program may have made folders that cannot be removed.
    with TemporaryDirectory(prefix="postrain-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        work = folder / "work"
        work.mkdir()
        (folder / "job.json").write_text(json.dumps(job))
        (folder / "stdin").write_text(stdin, errors="replace")
        with (folder / "stdin").open() as given, (folder / "stdout").open("wb") as said:
            process = subprocess.Popen(
                [*PYTHON, sandbox_process.__file__, str(folder / "job.json")],
                stdin=given,
                stdout=said,
                stderr=subprocess.DEVNULL,
                cwd=work,
                env={**ENVIRONMENT, "TMPDIR": str(work)},
                start_new_session=True,
            )
            status = _ended(process, limits.seconds * sandbox_process.PATIENCE + SECONDS_TO_START)
        return Outcome((folder / "stdout").read_text(errors="replace"), status)


def _ended(process: subprocess.Popen[bytes], seconds: float) -> int:
    """The exit status; a process that should have ended by itself is killed with its whole session."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return sandbox_process.OUT_OF_LIMITS
