"""The process group of a run, one process per rank.

On one machine the first rank starts the others with the config in the run folder, so all ranks share settings and
folder. On several nodes torchrun or srun starts all ranks (environment.py). The process group exists before components
are built.

On one machine no port listens beyond loopback: the rendezvous is a file, since torch's TCPStore listens on every
interface, and gloo and NCCL use the loopback interface.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from postrain.config.paths import IN_CHECKOUT
from postrain.errors import ConfigError, one_line
from postrain.hardware.environment import is_first_of_node
from postrain.hardware.trainer import Hardware
from postrain.processor import usable_cores
from postrain.runs.folder import RunFolder

# Exit codes that are not errors: still running, done, killed by the first rank, or stopped by a signal.
STOPPED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
NORMAL_EXITS = (None, 0, -signal.SIGKILL, *(128 + number for number in STOPPED))
LOST_RANK = re.compile(
    r"Connection (reset|closed|refused)|connectFullMesh|Broken pipe|ncclRemoteError|NCCL communicator was aborted"
)
"""What gloo and NCCL say in a rank when another one has ended."""
TIMEOUT = timedelta(hours=1)
"""How long ranks wait for each other: while the first one writes a checkpoint of 100 GB or a slow reward is computed.
NCCL's default of ten minutes ends such a run; a rank that died is noticed without it."""
# Environment variable with the path of the rendezvous file of one machine's ranks.
RENDEZVOUS = "POSTRAIN_RENDEZVOUS"
VLLM_STATE = "vllm.distributed.parallel_state"
"""The module with vLLM's process groups. A colocated vLLM in a run of one process makes a group of one rank."""
# Seconds in which the first rank may raise the error that ended another rank.
GRACE_SECONDS = 10.0
# The original function: during a run, runs/status.py replaces os._exit by an exception.
EXIT = os._exit


@contextmanager
def process_group(hardware: Hardware, folder: Path | None) -> Iterator[Path]:
    """Context of a run's process group; yields the first rank's `folder` on every rank."""
    if hardware.strategy == "single":
        assert folder is not None
        yield folder
        return
    check_group(hardware)
    before, threads, finished = dict(os.environ), torch.get_num_threads(), threading.Event()
    others: list[subprocess.Popen[bytes]] = []
    # Readable by this user only (0700).
    rendezvous = tempfile.TemporaryDirectory(prefix="postrain-ranks-", ignore_cleanup_errors=True)
    if "RANK" not in os.environ:
        assert folder is not None
        os.environ |= loopback_environment(Path(rendezvous.name, "store"))
        others = _start_other_ranks(hardware, folder, finished)
    if hardware.accelerator == "gpu":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    created = not dist.is_initialized()
    if created:
        init_process_group("gloo" if hardware.accelerator == "cpu" else "nccl")
    try:
        shared: list[Path | None] = [folder]
        dist.broadcast_object_list(shared)
        assert shared[0] is not None
        yield shared[0]
        dist.barrier()
        for process in others:
            process.wait(timeout=60)
    except ConfigError as error:
        # The command line prints those of the first rank.
        if not is_first_of_node():
            print(f"rank {os.environ['RANK']}: {error}", file=sys.stderr)
        raise
    except RuntimeError as error:
        if not LOST_RANK.search(str(error)):
            raise
        reason = one_line(error, 160)
        raise ConfigError(
            f"rank {os.environ['RANK']}: another rank ended, or its node cannot be reached ({reason}); its own "
            "messages say why. name=NAME resume=auto continues from the newest checkpoint when the command is repeated"
        ) from error
    finally:
        finished.set()
        for process in others:
            process.kill()
        if created:
            end_groups()
        torch.set_num_threads(threads)
        os.environ.clear()
        os.environ.update(before)
        rendezvous.cleanup()


def check_group(hardware: Hardware) -> None:
    """Ends the group that an earlier run's vLLM left in this process, for a run with another number of ranks.

    Raises ConfigError for such a group of something else.
    """
    if not dist.is_initialized() or dist.get_world_size() == hardware.ranks:
        return
    if VLLM_STATE not in sys.modules:
        raise ConfigError(
            f"trainer.strategy={hardware.strategy}: expected a process group of {hardware.ranks}, and this process is "
            f"in one of {dist.get_world_size()}; start the run in a process of its own"
        )
    end_groups()


def end_groups() -> None:
    """Ends all process groups, also those of a colocated vLLM, which otherwise expects the same number of ranks in
    later runs of this process."""
    if vllm := sys.modules.get(VLLM_STATE):
        vllm.destroy_model_parallel()
        vllm.destroy_distributed_environment()
    if dist.is_initialized():
        dist.destroy_process_group()


def loopback_environment(rendezvous: Path) -> dict[str, str]:
    """The environment of ranks with the rendezvous file `rendezvous` that listen on loopback only."""
    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), "lo")
    return {RENDEZVOUS: str(rendezvous), "GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}


def init_process_group(backend: str) -> None:
    """Joins the process group: through the rendezvous file on one machine, through MASTER_ADDR on several nodes."""
    if RENDEZVOUS not in os.environ:
        dist.init_process_group(backend, timeout=TIMEOUT)
        return
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    file = f"file://{os.environ[RENDEZVOUS]}"
    dist.init_process_group(backend, timeout=TIMEOUT, init_method=file, rank=rank, world_size=size)


def _start_other_ranks(hardware: Hardware, folder: Path, finished: threading.Event) -> list[subprocess.Popen[bytes]]:
    """Makes this process rank 0 and starts the other ranks on the run in `folder`."""
    if hardware.num_nodes > 1:
        raise ConfigError(
            "trainer.num_nodes: several nodes need torchrun or srun, on each node: "
            f"torchrun --nnodes {hardware.num_nodes} --nproc-per-node {hardware.devices} "
            + ("train.py" if IN_CHECKOUT else "-m postrain train")
        )
    threads = hardware.threads or max(1, usable_cores() // hardware.devices)
    torch.set_num_threads(threads)
    python_path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(hardware.ranks)}
    os.environ |= {"OMP_NUM_THREADS": str(threads), "NODE_RANK": "0", "RANK": "0", "LOCAL_RANK": "0"}
    command = [sys.executable, "-m", "postrain.jobs.session", str(folder.resolve())]
    others = [
        subprocess.Popen(
            command, env=os.environ | {"PYTHONPATH": python_path, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(1, hardware.ranks)
    ]
    threading.Thread(target=_watch_ranks, args=(others, RunFolder(folder), finished), daemon=True).start()
    return others


def _watch_ranks(others: list[subprocess.Popen[bytes]], folder: RunFolder, finished: threading.Event) -> None:
    """Ends this process when another rank has died, since a collective operation would wait for that rank forever."""
    while not finished.wait(0.5):
        died = [process for process in others if process.poll() not in NORMAL_EXITS]
        if died and not finished.wait(GRACE_SECONDS):
            reason = f"another rank of this run ended with exit code {died[0].returncode}; its output is above"
            folder.status.failed(reason)
            print(f"error: {reason}", file=sys.stderr, flush=True)
            EXIT(1)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
