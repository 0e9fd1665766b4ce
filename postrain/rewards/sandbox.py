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

from postrain.errors import ConfigError
from postrain.rewards import sandbox_process

STARTUP_SECONDS = 10
"""Extra seconds for start-up and clean-up on a busy machine."""
# Not `-I`: it would randomise the order of sets, and with it some scores. The job names the installed packages, since
# importing `site` would take half of the start-up time.
PYTHON = (sys.executable, "-S", "-P", "-s", "-B", "-X", "utf8")
PACKAGES = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
ENVIRONMENT = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Limits:
    """The limits of one program."""

    seconds: int
    """CPU seconds; five times that in wall-clock time."""
    memory_mb: int
    """MiB."""


@dataclass(frozen=True)
class ProgramResult:
    """The result of a program."""

    output: str
    """Standard output; with tests, one character per test that was reached: 1 passed, 0 failed."""
    status: int
    """Exit status of the program or of `sandbox_process`."""

    @property
    def limited(self) -> bool:
        """True if the program was killed for exceeding a limit."""
        return self.status == sandbox_process.OUT_OF_LIMITS


def check_execution(section: str, what: str, allowed: bool) -> None:
    """Raises ConfigError unless `section`.allow_execution is true, on Linux; `what` runs the programs."""
    if not allowed:
        raise ConfigError(
            f"{section}.allow_execution: {what} runs Python that the model wrote, on this machine, with limits on "
            "time, memory, files and network that stop mistakes, not malicious code; set "
            f"{section}.allow_execution=true"
        )
    if sys.platform != "linux":
        raise ConfigError(f"{section}: running code needs the resource limits of Linux; this is {sys.platform}")


def execute(program: str, *, tests: Sequence[str] | None, stdin: str = "", limits: Limits) -> ProgramResult:
    """Runs a Python program in a separate process and a temporary folder; both are removed.

    With `tests`, the program is the module under test and its output is discarded; without, it is a script that reads
    `stdin`.
    """
    job = {"program": program, "tests": tests, "packages": PACKAGES, **asdict(limits)}
    # The program may create folders that cannot be removed.
    with TemporaryDirectory(prefix="postrain-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        work = folder / "work"
        work.mkdir()
        (folder / "job.json").write_text(json.dumps(job))
        (folder / "stdin").write_text(stdin, errors="replace")
        with (folder / "stdin").open() as stdin_file, (folder / "stdout").open("wb") as stdout_file:
            process = subprocess.Popen(
                [*PYTHON, sandbox_process.__file__, str(folder / "job.json")],
                stdin=stdin_file,
                stdout=stdout_file,
                stderr=subprocess.DEVNULL,
                cwd=work,
                env={**ENVIRONMENT, "TMPDIR": str(work)},
                start_new_session=True,
            )
            status = _wait(process, limits.seconds * sandbox_process.WALL_PER_CPU_SECOND + STARTUP_SECONDS)
        return ProgramResult((folder / "stdout").read_text(errors="replace"), status)


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int:
    """The exit status; after `seconds` the process is killed with its session."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return sandbox_process.OUT_OF_LIMITS
