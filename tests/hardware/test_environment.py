"""Ranks of torchrun and srun by their environment variables, as a real Slurm 22.05 sets them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch.distributed as dist

from postrain.errors import ConfigError
from postrain.hardware.environment import check_ranks, first_node, launcher, read_srun, refuse_ranks
from postrain.hardware.ranks import VLLM_STATE, check_group, init_process_group, loopback_environment, process_group
from postrain.hardware.trainer import Hardware
from tests.cli.test_main import run

BATCH = {"SLURM_JOB_ID": "2", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
STEP = BATCH | {
    "SLURM_STEP_ID": "3",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}
TORCHRUN = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "none"}


@pytest.fixture
def environment(monkeypatch):
    """Sets variables for a test; those that the program sets are removed afterwards."""
    before = dict(os.environ)
    yield lambda names: [monkeypatch.setenv(name, value) for name, value in names.items()]
    monkeypatch.undo()
    os.environ.clear()
    os.environ.update(before)


def test_task_of_srun_becomes_a_rank(environment):
    environment(STEP)
    read_srun()
    found = {name: os.environ[name] for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR")}
    assert found == {"RANK": "5", "LOCAL_RANK": "1", "NODE_RANK": "1", "WORLD_SIZE": "8", "MASTER_ADDR": "gpu03"}
    assert os.environ["MASTER_PORT"] == "15203"


@pytest.mark.parametrize("names", [{}, BATCH, STEP | {"SLURM_STEP_NUM_TASKS": "1"}])
def test_batch_script_and_single_task_are_not_ranks(names, environment):
    environment(names)
    read_srun()
    assert "RANK" not in os.environ
    assert launcher() is None
    check_ranks(devices=2, nodes=1)


def test_torchrun_in_a_task_of_srun_keeps_its_ranks(environment):
    environment(STEP | TORCHRUN | {"MASTER_PORT": "29400"})
    read_srun()
    assert (launcher(), os.environ["MASTER_PORT"]) == ("torchrun", "29400")


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("vm", "vm"), ("a1,b2", "a1"), ("gpu[03-05,7],cpu1", "gpu03"), ("n[7,9]", "n7"), ("n[12]", "n12")],
)
def test_first_node_of_a_node_list(nodes, first):
    assert first_node(nodes) == first


@pytest.mark.parametrize("names", [STEP, TORCHRUN])
def test_other_number_of_ranks_is_refused_with_the_options_to_use(names, environment):
    environment(names)
    read_srun()
    check_ranks(devices=4, nodes=2)
    with pytest.raises(ConfigError, match=r"started 8 processes for a run of 1; .*devices=4 trainer.num_nodes=2, or"):
        check_ranks(devices=1, nodes=1)
    with pytest.raises(ConfigError, match="started 8 processes"):
        Hardware().check()
    with pytest.raises(ConfigError, match=r"a sweep: must not be started with (srun|torchrun)"):
        refuse_ranks("a sweep")


def test_a_mistake_is_printed_once_per_machine(environment, capsys):
    environment({"RANK": "4", "LOCAL_RANK": "0"})
    assert run("method=sft", "method.learning_rat=1") == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    environment({"RANK": "5", "LOCAL_RANK": "1"})
    assert run("method=sft", "method.learning_rat=1") == 2
    assert capsys.readouterr().err == ""


def test_trainer_ignores_a_slurm_job(environment, tmp_path):
    """Lightning would take the 8 tasks of the job for its ranks, and SIGUSR1 for its own signal."""
    environment(BATCH)
    trainer = Hardware().make_trainer([], [], tmp_path)
    assert (trainer.world_size, trainer.global_rank) == (1, 0)
    assert type(trainer._accelerator_connector.cluster_environment).__name__ == "LightningEnvironment"


def test_torchrun_that_cannot_restart_ranks_is_refused(environment):
    environment(TORCHRUN | {"TORCHELASTIC_MAX_RESTARTS": "3", "TORCHELASTIC_USE_AGENT_STORE": "True"})
    with pytest.raises(ConfigError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        check_ranks(devices=4, nodes=2)
    environment({"TORCHELASTIC_USE_AGENT_STORE": "False"})
    check_ranks(devices=4, nodes=2)


@pytest.mark.parametrize(
    ("message", "lost"),
    [
        ("[pair.cc:537] Read error [127.0.0.1]:14725: Connection reset by peer. This is typically caused by", True),
        ("[pair.cc:553] Connection closed by peer [10.0.0.2]:4411", True),
        ("NCCL error: remote process exited or there was a network error, ncclRemoteError", True),
        ("The size of tensor a (3) must match the size of tensor b (4)", False),
    ],
)
def test_lost_rank_is_one_line(message, lost, environment):
    environment({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"})
    expected = (
        pytest.raises(ConfigError, match=f"another rank ended.*{re.escape(message)}")
        if lost
        else pytest.raises(RuntimeError)
    )
    with expected, process_group(Hardware(strategy="ddp"), Path()):
        raise RuntimeError(message)


@pytest.fixture
def one_rank(tmp_path, monkeypatch) -> Iterator[None]:
    """A process group of one rank, as a colocated vLLM leaves it."""
    for name, value in (loopback_environment(tmp_path / "store") | {"RANK": "0", "WORLD_SIZE": "1"}).items():
        monkeypatch.setenv(name, value)
    init_process_group("gloo")
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_group_that_vllm_left_is_ended_for_a_run_with_more_ranks(monkeypatch):
    vllm, ended = ModuleType("parallel_state"), []
    for name in ("destroy_model_parallel", "destroy_distributed_environment"):
        monkeypatch.setattr(vllm, name, partial(ended.append, name), raising=False)
    monkeypatch.setitem(sys.modules, VLLM_STATE, vllm)
    check_group(Hardware(strategy="ddp", devices=1))
    assert dist.is_initialized()
    check_group(Hardware(strategy="ddp", devices=2))
    assert not dist.is_initialized()
    assert ended == ["destroy_model_parallel", "destroy_distributed_environment"]


@pytest.mark.usefixtures("one_rank")
def test_group_of_something_else_is_refused_for_a_run_with_more_ranks(monkeypatch):
    monkeypatch.delitem(sys.modules, VLLM_STATE, raising=False)
    with pytest.raises(ConfigError, match=r"^trainer\.strategy=ddp: expected a process group of 2, and .* of 1; start"):
        check_group(Hardware(strategy="ddp", devices=2))
