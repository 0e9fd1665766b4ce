"""What both sides of a benchmark are measured with: the clock around each update, peak memory of the process, and CPU
seconds of what a method does once before it learns.

Standard library only, so that it runs in any environment the peer is installed in.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path


class Stopwatch:
    """Wall and CPU seconds of each update, and CPU seconds of a pass before the first."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.pass_cpu = 0.0
        self._started = (0.0, 0.0)

    def start(self) -> None:
        """An update begins."""
        self._started = (time.perf_counter(), time.process_time())

    def stop(self) -> None:
        """It is over."""
        self.wall.append(time.perf_counter() - self._started[0])
        self.cpu.append(time.process_time() - self._started[1])

    def stop_pass(self) -> None:
        """What began was no update but what comes before the first."""
        self.pass_cpu = time.process_time() - self._started[1]

    def write(self, path: Path) -> None:
        """The measurement as JSON."""
        found = {"wall": self.wall, "cpu": self.cpu, "peak_mb": peak_mb(), "pass_cpu": self.pass_cpu}
        path.write_text(json.dumps(found), encoding="utf-8")


def peak_mb() -> float:
    """Most memory this process ever held. Linux's own mark starts anew at exec; getrusage's is inherited."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
