"""Sampling on a vLLM server: token ids over its OpenAI-compatible HTTP API, the policy's weights after every update.

The transferred weights have a version. A server with another version (it restarted, or another run uses it) gets them
again before it samples. Not supported: starting the server, and several servers.

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --logprobs-mode processed_logprobs
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from postrain.errors import ConfigError
from postrain.hardware import collectives
from postrain.models.parts import unwrapped
from postrain.rollout.vllm_adapter import AdapterTransfer, check_adapter
from postrain.rollout.vllm_http import Connection
from postrain.rollout.vllm_transfer import DiskTransfer, NCCLTransfer, Transfer
from postrain.types import Completion

CONNECTIONS = 128
"""Concurrent requests; the server batches them."""
WeightTransfer = Literal["auto", "nccl", "disk"]


class Server:
    """See `postrain.rollout.vllm.Backend`. Every rank requests its own completions; rank 0 transfers weights."""

    def __init__(
        self,
        connection: Connection,
        model: nn.Module,
        *,
        transfer: WeightTransfer,
        folder: str | None,
        dtype: torch.dtype,
        enable_lora: bool,
    ) -> None:
        self.http, self.where = connection, f"rollout.url={connection.url}"
        self.version = ""
        self.adapter: str | None = None
        """Name of the adapter to sample from."""
        path = Path(folder) if folder else None
        nccl = transfer == "nccl" or (transfer == "auto" and unwrapped(model).device.type == "cuda")
        self.transfer: Transfer = NCCLTransfer(connection) if nccl else DiskTransfer(connection, path, dtype)
        if enable_lora:
            check_adapter(model)
            self.transfer = AdapterTransfer(connection, self.transfer, path)

    def load(self, model: nn.Module) -> None:
        """See `Backend.load`; all ranks wait until it is done."""
        version, adapter = uuid.uuid4().hex, None
        collectives.gather(None)  # other ranks may still sample from the earlier weights
        if collectives.rank() == 0:
            adapter = self.transfer.send(model, version, fresh=not self.has_weights())
            # The prefix cache holds prompts computed with the earlier weights.
            if not self.http.request("/reset_prefix_cache", {})["success"]:
                raise ConfigError(f"{self.where}: it could not reset its prefix cache; end its other requests")
            self.http.request("/update_weight_version", {"new_version": version})
        self.version, self.adapter = collectives.gather((version, adapter))[0]

    def has_weights(self) -> bool:
        """See `Backend.has_weights`."""
        return self.http.request("/weight_info")["weight_version"] == self.version

    def complete(self, prompts: Sequence[Tensor], settings: Sequence[Mapping[str, Any]]) -> list[Completion]:
        """See `Backend.complete`."""
        name = self.adapter or self.http.request("/v1/models")["data"][0]["id"]

        def one(prompt: Tensor, values: Mapping[str, Any]) -> Completion:
            body = {"model": name, "prompt": prompt.tolist(), "return_token_ids": True, **values}
            return completion_of(self.http.request("/v1/completions", body)["choices"][0])

        with ThreadPoolExecutor(CONNECTIONS) as pool:
            return list(pool.map(one, prompts, settings))

    def release(self) -> None:
        """See `Backend.release`."""


def completion_of(choice: Mapping[str, Any]) -> Completion:
    """A choice of the server's answer as a completion."""
    return Completion(
        torch.tensor(choice["token_ids"], dtype=torch.long),
        torch.tensor(choice["logprobs"]["token_logprobs"], dtype=torch.float32),
        finished=choice["finish_reason"] == "stop",
    )
