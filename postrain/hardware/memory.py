"""Memory of this machine and of this process, in bytes."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import torch

from postrain.hardware import mps
from postrain.processor import CGROUP, usable_memory


def available_memory(device: torch.device) -> int | None:
    """Bytes that this process can still allocate on the device; None if the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return mps.free_memory()
    known = [value for value in (_free_in_system(), _free_in_container()) if value is not None]
    return min(known, default=None)


def total_memory(device: torch.device) -> int:
    """Bytes of memory of the device; of RAM, at most the limit of the control group."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return usable_memory()


def resident_memory() -> int:
    """Bytes of RAM that this process uses now; the peak where the system reports no more."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return peak_memory()


def peak_memory() -> int:
    """The largest number of bytes of RAM that this process has used."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _free_in_system() -> int | None:
    """Free memory, with the page cache that the kernel can drop."""
    fields = _fields(Path("/proc/meminfo"))
    return fields["MemAvailable:"] * 1024 if "MemAvailable:" in fields else None


def _free_in_container() -> int | None:
    """The rest of the limit of the control group (version 2) of a container or a Slurm job; None without a limit."""
    try:
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):
        return None
    return max(0, limit - used + _fields(CGROUP / "memory.stat").get("inactive_file", 0))


def _fields(path: Path) -> dict[str, int]:
    """The numbers of a file of lines NAME NUMBER; {} if it cannot be read."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
        return {words[0]: int(words[1]) for words in lines if len(words) > 1}
    except (OSError, ValueError):
        return {}
