"""Measurements of a benchmark process: time per update, peak memory, and CPU time before the first update.

Standard library only, so that it runs in TRL's environment too.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path


class Stopwatch:
    """Wall and CPU seconds of each update, and CPU seconds of the reference pass before the first one."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.pass_cpu = 0.0
        self.first = 0.0
        """CPU seconds of the process before its first update."""
        self._started = (0.0, 0.0)

    def start(self) -> None:
        """Start timing an update or the reference pass."""
        self._started = (time.perf_counter(), time.process_time())

    def stop(self) -> None:
        """Record the update that `start` began."""
        if not self.cpu:
            self.first = self._started[1]
        self.wall.append(time.perf_counter() - self._started[0])
        self.cpu.append(time.process_time() - self._started[1])

    def stop_pass(self) -> None:
        """Record the CPU time since `start` as that of the reference pass."""
        self.pass_cpu = time.process_time() - self._started[1]

    def write(self, path: Path) -> None:
        """Write the measurement as JSON."""
        own = {"wall": self.wall, "cpu": self.cpu, "pass_cpu": self.pass_cpu, "first": self.first}
        measurement = {**own, "peak_mb": peak_mb()}
        path.write_text(json.dumps(measurement), encoding="utf-8")


def peak_mb() -> float:
    """Peak resident memory of this process in MB. On Linux from VmHWM, as ru_maxrss is inherited through exec."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
