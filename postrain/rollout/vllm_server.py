"""Sampling on a vLLM server: token ids over its OpenAI-compatible HTTP API, new weights over NCCL with vLLM's weight
transfer. Not supported: starting the server, and several servers.

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --weight-transfer-config '{"backend": "nccl"}' \\
        --logprobs-mode processed_logprobs
"""

from __future__ import annotations

import importlib
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from postrain.errors import ConfigError
from postrain.hardware import collectives
from postrain.models.weight_sync import merged_weights
from postrain.types import Completion

CONNECTIONS = 128
"""Concurrent requests; the server batches them."""
SERVE = 'VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --weight-transfer-config \'{"backend": "nccl"}\''


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


class Server:
    """A vLLM server at `url`. Every rank requests its own completions; rank 0 transfers weights."""

    def __init__(self, url: str, *, timeout: float) -> None:
        self.url, self.timeout = url.rstrip("/"), timeout
        self.name = self._request("/v1/models")["data"][0]["id"]
        self.sender: Any = None

    def load(self, model: nn.Module) -> None:
        """See `Backend.load`; all ranks wait until it is done."""
        if collectives.rank() == 0:
            if self.sender is None:
                self.sender = self._sender(model)
            self.sender.send_weights()
            self._request("/reset_prefix_cache", {})
        collectives.gather(None)

    def complete(self, prompts: Sequence[Tensor], settings: Sequence[Mapping[str, Any]]) -> list[Completion]:
        """See `Backend.complete`."""
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            return list(pool.map(self._complete, prompts, settings))

    def _complete(self, prompt: Tensor, settings: Mapping[str, Any]) -> Completion:
        body = {"model": self.name, "prompt": prompt.tolist(), "return_token_ids": True, **settings}
        choice = self._request("/v1/completions", body)["choices"][0]
        return Completion(
            torch.tensor(choice["token_ids"], dtype=torch.long),
            torch.tensor(choice["logprobs"]["token_logprobs"], dtype=torch.float32),
            finished=choice["finish_reason"] == "stop",
        )

    def _sender(self, model: nn.Module) -> Any:
        """vLLM's trainer-side engine, connected: this process is rank 0 of a group with the server's workers."""
        transfer = importlib.import_module("vllm.distributed.weight_transfer")
        nccl = importlib.import_module("vllm.distributed.weight_transfer.nccl_engine")
        network = importlib.import_module("vllm.utils.network_utils")
        return transfer.WeightTransferTrainerFactory.trainer_init(
            init_info=nccl.NCCLTrainerInitInfo(
                master_address=network.get_ip(),
                master_port=network.get_open_port(),
                world_size=self._request("/get_world_size")["world_size"] + 1,
                rank=0,
            ),
            client=transfer.HTTPVLLMWeightSyncClient(self.url, timeout=self.timeout),
            source=Weights(model, transfer.ParamMeta),
        )

    def _request(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The parsed response of the server; None if it is empty."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                text = response.read()
        except urllib.error.HTTPError as error:
            detail = error.read().decode(errors="replace")[:200].replace("\n", " ")
            refused = f"{path} was refused ({error.code}): {detail}"
            raise ConfigError(f"rollout.url={self.url}: {refused}; start {SERVE}") from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"rollout.url={self.url}: {path} cannot be reached ({error}); start {SERVE}") from None
        return json.loads(text) if text else None
