"""Transfers of a policy's weights to vLLM servers: files in a folder that all read, or NCCL between GPUs.

Rank 0 sends. The other ranks iterate over the weights too, since all ranks gather those of a sharded model together.
"""

from __future__ import annotations

import importlib
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from postrain.config.extras import load
from postrain.errors import ConfigError, one_line
from postrain.hardware import collectives
from postrain.models.weight_sync import describe_weights, merged_weights
from postrain.rollout.vllm_http import Connection, Connections, ServerLost

SHARD = 2**31
"""Bytes of a file of weights, and of the copies in memory while it is written."""


class Transfer(Protocol):
    """A way to replace the weights of servers."""

    def send(self, model: nn.Module, version: str, *, fresh: bool) -> str | None:
        """Returns when the servers have the weights, with the name of their adapter to sample from, if any.

        All ranks must call it; it returns earlier on other ranks than the first. `fresh` states that a server has none
        of the run's weights. Raises ServerLost or ConfigError.
        """
        ...


@dataclass(frozen=True)
class DiskTransfer:
    """Writes safetensors files, which vLLM reloads with its own loader (`reload_weights` of its workers)."""

    servers: Connections
    folder: Path | None
    """A folder on a file system that the servers read too; None is the folder for temporary files."""
    dtype: torch.dtype
    """The servers' dtype."""

    def send(self, model: nn.Module, version: str, *, fresh: bool) -> None:
        """See `Transfer.send`."""
        if collectives.rank() > 0:
            return take_part(model)
        with (
            one_line_disk_error(self.folder),
            tempfile.TemporaryDirectory(prefix="postrain-weights-", dir=self.folder) as directory,
        ):
            write_shards(merged_weights(model), Path(directory), self.dtype)
            body = {"method": "reload_weights", "kwargs": {"weights_path": directory}}
            self.servers.request("/collective_rpc", body)
        return None


def take_part(model: nn.Module) -> None:
    """The part of another rank than the first in one pass over the weights."""
    deque(merged_weights(model), maxlen=0)


@contextmanager
def one_line_disk_error(folder: Path | None) -> Iterator[None]:
    """Raises ConfigError if a file cannot be written."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"rollout.transfer_dir={folder}: the weights cannot be written ({error.strerror or error}); give a folder "
            "with free space that the server reads too"
        ) from None


def write_shards(weights: Iterator[tuple[str, Tensor]], directory: Path, dtype: torch.dtype) -> None:
    """Writes floating-point weights in `dtype`, others as they are, to safetensors files of at most SHARD bytes, or of
    one weight."""
    shard: dict[str, Tensor] = {}
    size, number = 0, 0

    def write() -> None:
        nonlocal shard, size, number
        save_file(shard, directory / f"model-{number:05d}.safetensors", {"format": "pt"})
        shard, size, number = {}, 0, number + 1

    for name, weight in weights:
        kept = weight.to("cpu", dtype if weight.is_floating_point() else weight.dtype, copy=True).contiguous()
        if shard and size + kept.nbytes > SHARD:
            write()
        shard[name], size = kept, size + kept.nbytes
    write()


@dataclass(frozen=True)
class Weights:
    """A policy's current weights as vLLM's `WeightSource`; read again at each transfer."""

    model: nn.Module
    description: type[Any]
    """vLLM's ParamMeta(name, dtype, shape)."""

    def metadata(self) -> list[Any]:
        """Names, dtypes and shapes in the order of iteration."""
        return [self.description(*each) for each in describe_weights(self.model)]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return merged_weights(self.model)


@dataclass(frozen=True)
class NCCLTransfer:
    """vLLM's weight transfer over NCCL: this process is rank 0 of a group with a server's workers, for each server."""

    servers: Connections
    senders: dict[Connection, Any] = field(default_factory=dict)

    def send(self, model: nn.Module, version: str, *, fresh: bool) -> None:
        """See `Transfer.send`."""
        for server in self.servers.servers:
            if collectives.rank() > 0:
                take_part(model)
            else:
                self._send_to(server, model)

    def _send_to(self, server: Connection, model: nn.Module) -> None:
        load("vllm")
        try:
            if server not in self.senders:
                self.senders[server] = connect(server, model)
            self.senders[server].send_weights()
        except ConfigError:
            raise
        except (OSError, RuntimeError, ValueError) as error:
            # The group has ended with the server; a restarted one needs another.
            self.senders.pop(server, None)
            message = f"the transfer of weights over NCCL failed ({one_line(error)})"
            kind = ConfigError if server.is_up() else ServerLost
            raise kind(
                f"rollout.url={server.url}: {message}; start the server with --weight-transfer-config "
                '\'{"backend": "nccl"}\', or use rollout.weight_transfer=disk'
            ) from None


def connect(server: Connection, model: nn.Module) -> Any:
    """vLLM's sender, in a new NCCL group with the server's workers."""
    transfer = importlib.import_module("vllm.distributed.weight_transfer")
    nccl = importlib.import_module("vllm.distributed.weight_transfer.nccl_engine")
    network = importlib.import_module("vllm.utils.network_utils")
    return transfer.WeightTransferTrainerFactory.trainer_init(
        init_info=nccl.NCCLTrainerInitInfo(
            master_address=network.get_ip(),
            master_port=network.get_open_port(),
            world_size=server.request("/get_world_size")["world_size"] + 1,
            rank=0,
        ),
        client=transfer.HTTPVLLMWeightSyncClient(server.url, timeout=server.timeout),
        source=Weights(model, transfer.ParamMeta),
    )
