"""Ends a job of a sweep when the sweep's process ends, even by SIGKILL. Imports only fast modules."""

from __future__ import annotations

import os
import signal
import threading

# Set for a job's process: its standard input ends when the sweep does.
JOB = "POSTRAIN_SWEEP_JOB"


def watch_parent() -> None:
    """In the process of a job, watches for the sweep's end: then the update in hand is finished and saved."""
    if os.environ.pop(JOB, None):
        threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    # Not sys.stdin: at the end of the process Python would wait for its lock, and abort.
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
