"""One process a rank. The first rank starts the others itself, each on the run folder's own config: nobody composes the
command line twice, so a sweep cannot give two ranks different settings and no rank makes a folder of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from postrain.hardware import Hardware


def is_first_rank() -> bool:
    """False in the processes that `ranks` or a cluster started beside the first one."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0 and int(os.environ.get("SLURM_PROCID", 0)) == 0


@contextmanager
def ranks(hardware: Hardware, folder: Path) -> Iterator[None]:
    """Starts the node's other ranks on `folder` and makes this process rank 0; ends them when the block is left."""
    externally = "SLURM_PROCID" in os.environ or "LOCAL_RANK" in os.environ
    if hardware.strategy == "single" or externally:
        yield
        return
    shared = {
        "MASTER_ADDR": os.environ.get("MASTER_ADDR", "127.0.0.1"),
        "MASTER_PORT": os.environ.get("MASTER_PORT", str(_free_port())),
        "NODE_RANK": os.environ.get("NODE_RANK", "0"),
        "WORLD_SIZE": str(hardware.ranks),
        "OMP_NUM_THREADS": str(hardware.threads or max(1, (os.cpu_count() or 1) // hardware.devices)),
    }
    before = dict(os.environ)
    os.environ.update(shared, LOCAL_RANK="0")
    command = [sys.executable, "-m", "postrain.run", str(folder)]
    others = [
        subprocess.Popen(command, env=os.environ | {"LOCAL_RANK": str(rank)}) for rank in range(1, hardware.devices)
    ]
    try:
        yield
        for process in others:
            process.wait(timeout=60)
    finally:
        for process in others:
            process.kill()
        os.environ.clear()
        os.environ.update(before)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
