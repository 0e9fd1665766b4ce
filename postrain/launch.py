"""One process a rank, and one process group for a run.

On one machine the first rank starts the others itself, each on the run folder's own config: nobody composes the command
line twice, so a sweep cannot give two ranks different settings, and no rank makes a folder of its own. Under torchrun
or Slurm the ranks are there already. Either way the group is up before anything is built.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

from postrain.folder import RunFolder
from postrain.hardware import Hardware

# How a rank ends when all is well: still running, done, killed by the first rank, or told to stop like it.
ENDINGS = (None, 0, -signal.SIGKILL, 128 + signal.SIGINT, 128 + signal.SIGTERM)


def is_first_rank() -> bool:
    """False in the processes that stand beside the first one."""
    return global_rank() == 0


def global_rank(devices: int = 0) -> int:
    """This process's number among all ranks, by whatever started it; `devices` is the ranks of a node."""
    if "RANK" in os.environ or "SLURM_PROCID" in os.environ:
        return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0)))
    return int(os.environ.get("NODE_RANK", 0)) * devices + int(os.environ.get("LOCAL_RANK", 0))


@contextmanager
def ranks(hardware: Hardware, folder: Path | None) -> Iterator[Path]:
    """Brings up the process group of a run and gives every rank the first one's `folder`; takes it down afterwards."""
    if hardware.strategy == "single":
        assert folder is not None
        yield folder
        return
    before = dict(os.environ)
    others: list[subprocess.Popen[bytes]] = []
    if not {"LOCAL_RANK", "SLURM_PROCID"} & os.environ.keys():
        assert folder is not None
        others = _start_others(hardware, folder)
    mine = not dist.is_initialized()
    if mine:
        backend = "gloo" if hardware.accelerator == "cpu" else "nccl"
        dist.init_process_group(backend, rank=global_rank(hardware.devices), world_size=hardware.ranks)
    try:
        shared: list[Path | None] = [folder]
        dist.broadcast_object_list(shared)
        assert shared[0] is not None
        yield shared[0]
        dist.barrier()
        if mine:
            dist.destroy_process_group()
        for process in others:
            process.wait(timeout=60)
    finally:
        for process in others:
            process.kill()
        os.environ.clear()
        os.environ.update(before)


def _start_others(hardware: Hardware, folder: Path) -> list[subprocess.Popen[bytes]]:
    """Makes this process rank 0 and starts the node's further ranks on the run in `folder`."""
    threads = hardware.threads or max(1, (os.cpu_count() or 1) // hardware.devices)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(_free_port()))
    os.environ |= {"LOCAL_RANK": "0", "WORLD_SIZE": str(hardware.ranks), "OMP_NUM_THREADS": str(threads)}
    os.environ.setdefault("NODE_RANK", "0")
    command = [sys.executable, "-m", "postrain.run", str(folder.resolve())]
    here = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    others = [
        subprocess.Popen(command, env=os.environ | {"LOCAL_RANK": str(rank), "PYTHONPATH": here})
        for rank in range(1, hardware.devices)
    ]
    threading.Thread(target=_watch, args=(others, RunFolder(folder)), daemon=True).start()
    return others


def _watch(others: list[subprocess.Popen[bytes]], folder: RunFolder) -> None:
    """Ends this process when another rank has died: it would wait for that rank for ever, deaf to exceptions."""
    while any(process.poll() is None for process in others):
        time.sleep(0.5)
        died = [process for process in others if process.poll() not in ENDINGS]
        if died:
            reason = f"another rank of this run ended with code {died[0].returncode}; what it printed is above"
            folder.status.failed(reason)
            print(f"error: {reason}", file=sys.stderr, flush=True)
            os._exit(1)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
