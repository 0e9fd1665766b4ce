"""The environment variables of a rank: RANK, LOCAL_RANK, WORLD_SIZE, NODE_RANK, MASTER_ADDR and MASTER_PORT.

torchrun sets them, and the first rank of a run on one machine sets them for the others (ranks.py). In the tasks of
`srun` they are derived from Slurm's. Imports neither torch nor lightning: the command line reads it at its start.
"""

from __future__ import annotations

import os
import re

from postrain.errors import ConfigError

# Set by `srun` only, unlike SLURM_NTASKS, which a batch script and salloc have too.
TASKS = "SLURM_STEP_NUM_TASKS"
FIRST_PORT, PORTS = 15000, 20000


def is_first_rank() -> bool:
    """Whether this process is rank 0, or the only one."""
    return int(os.environ.get("RANK", 0)) == 0


def is_first_of_node() -> bool:
    """Whether this process is the first rank of its machine, or the only one."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0


def launcher() -> str | None:
    """What started this process as one of several ranks: torchrun or srun; None if nothing did."""
    if int(os.environ.get(TASKS, 1)) > 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        return "srun"
    return "torchrun" if "RANK" in os.environ else None


def read_srun() -> None:
    """Sets the variables of a rank in a task of `srun` with several tasks; in other processes does nothing.

    The port is derived from the numbers of job and step, so that steps on one machine have different ones.
    """
    if launcher() != "srun" or "RANK" in os.environ:
        return
    slurm = {name: os.environ[f"SLURM_{name}"] for name in ("PROCID", "LOCALID", "NODEID", "STEP_NODELIST")}
    number = 100 * int(os.environ.get("SLURM_JOB_ID", 0)) + int(os.environ.get("SLURM_STEP_ID", 0))
    os.environ |= {
        "RANK": slurm["PROCID"],
        "LOCAL_RANK": slurm["LOCALID"],
        "NODE_RANK": slurm["NODEID"],
        "WORLD_SIZE": os.environ[TASKS],
        "MASTER_ADDR": os.environ.get("MASTER_ADDR", first_node(slurm["STEP_NODELIST"])),
        "MASTER_PORT": os.environ.get("MASTER_PORT", str(FIRST_PORT + number % PORTS)),
    }


def first_node(nodes: str) -> str:
    """The first name in a list of nodes as Slurm writes it: `gpu[03-05,7],cpu1` is gpu03."""
    before, bracket, inside = nodes.partition(",")[0].partition("[")
    return before + re.split(r"[,\-\]]", inside)[0] if bracket else before


def refuse_ranks(what: str) -> None:
    """Raises ConfigError if this process is one of several ranks; `what` names the program that starts ranks itself."""
    if name := launcher():
        raise ConfigError(f"{what}: must not be started with {name}; each of its runs starts its own ranks")


def check_ranks(devices: int, nodes: int) -> None:
    """Raises ConfigError if torchrun or srun started another number of ranks than `trainer` names, or if torchrun
    could not restart them."""
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0))
    if restarts and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise ConfigError(
            f"torchrun --max-restarts={restarts}: PyTorch would give restarted ranks the addresses of the ended ones; "
            "start it as TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --rdzv-backend=c10d (or --standalone)"
        )
    size = int(os.environ.get("WORLD_SIZE", 1))
    if (name := launcher()) is None or size == devices * nodes:
        return
    there = int(os.environ.get("SLURM_STEP_NUM_NODES", 0)) or size // int(os.environ.get("LOCAL_WORLD_SIZE", size))
    several = f" trainer.num_nodes={there}" if there > 1 else ""
    raise ConfigError(
        f"trainer: {name} started {size} processes for a run of {devices * nodes}; use "
        f"trainer=ddp or trainer=fsdp with trainer.devices={size // there}{several}, or start one process"
    )
