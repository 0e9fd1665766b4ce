"""Transfers of a policy's weights to a vLLM server: files in a folder that both read, or NCCL between GPUs."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from postrain.config.extras import load
from postrain.errors import ConfigError
from postrain.models.weight_sync import merged_weights
from postrain.rollout.vllm_http import Connection, ServerLost

SHARD = 2**31
"""Bytes of a file of weights, and of the copies in memory while it is written."""


class Transfer(Protocol):
    """A way to replace the weights of a server."""

    def send(self, model: nn.Module, version: str, *, fresh: bool) -> str | None:
        """Returns when the server has the weights, with the name of its adapter to sample from, if any.

        `fresh` states that the server has none of the run's weights. Raises ServerLost or ConfigError.
        """
        ...


@dataclass(frozen=True)
class DiskTransfer:
    """Writes safetensors files, which vLLM reloads with its own loader (`reload_weights` of its workers)."""

    server: Connection
    folder: Path | None
    """A folder on a file system that the server reads too; None is the folder for temporary files."""
    dtype: torch.dtype
    """The server's dtype."""

    def send(self, model: nn.Module, version: str, *, fresh: bool) -> None:
        """See `Transfer.send`."""
        with (
            one_line_disk_error(self.folder),
            tempfile.TemporaryDirectory(prefix="postrain-weights-", dir=self.folder) as directory,
        ):
            write_shards(merged_weights(model), Path(directory), self.dtype)
            body = {"method": "reload_weights", "kwargs": {"weights_path": directory}}
            self.server.request("/collective_rpc", body)


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
        return [self.description(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return merged_weights(self.model)


class NCCLTransfer:
    """vLLM's weight transfer over NCCL: this process is rank 0 of a group with the server's workers."""

    def __init__(self, server: Connection) -> None:
        self.server = server
        self.sender: Any = None

    def send(self, model: nn.Module, version: str, *, fresh: bool) -> None:
        """See `Transfer.send`."""
        load("vllm")
        try:
            self.sender = self.sender or self._connect(model)
            self.sender.send_weights()
        except ConfigError:
            raise
        except (OSError, RuntimeError, ValueError) as error:
            # The group has ended with the server; a restarted one needs another.
            self.sender = None
            message = f"the transfer of weights over NCCL failed ({first_line(error)})"
            kind = ConfigError if self.server.is_up() else ServerLost
            raise kind(
                f"rollout.url={self.server.url}: {message}; start the server with --weight-transfer-config "
                '\'{"backend": "nccl"}\', or use rollout.weight_transfer=disk'
            ) from None

    def _connect(self, model: nn.Module) -> Any:
        transfer = importlib.import_module("vllm.distributed.weight_transfer")
        nccl = importlib.import_module("vllm.distributed.weight_transfer.nccl_engine")
        network = importlib.import_module("vllm.utils.network_utils")
        return transfer.WeightTransferTrainerFactory.trainer_init(
            init_info=nccl.NCCLTrainerInitInfo(
                master_address=network.get_ip(),
                master_port=network.get_open_port(),
                world_size=self.server.request("/get_world_size")["world_size"] + 1,
                rank=0,
            ),
            client=transfer.HTTPVLLMWeightSyncClient(self.server.url, timeout=self.server.timeout),
            source=Weights(model, transfer.ParamMeta),
        )


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
