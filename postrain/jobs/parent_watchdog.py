"""Parent watchdog: ends a job when the process of its sweep ends, even by SIGKILL. Imports only fast modules."""

from __future__ import annotations

import os
import signal
import threading

# Set in the environment of a job, whose standard input is closed when the sweep ends.
JOB = "POSTRAIN_SWEEP_JOB"


def watch_parent() -> None:
    """In the process of a job: when the sweep ends, finish the current update, save and stop."""
    if os.environ.pop(JOB, None):
        threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    # Not sys.stdin: this thread would hold its lock at interpreter shutdown, and Python would abort.
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
