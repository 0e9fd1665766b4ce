"""Sampling on vLLM servers: token ids over their OpenAI-compatible HTTP API, the policy's weights after every update.

The transferred weights have a version. If a server has another one (it restarted, or another run uses it), all get them
again before they sample. Not supported: starting servers.

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --logprobs-mode processed_logprobs
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from postrain.errors import ConfigError
from postrain.hardware import collectives
from postrain.models.parts import unwrapped
from postrain.rollout.vllm_adapter import AdapterTransfer, check_adapter
from postrain.rollout.vllm_http import Connection, Connections
from postrain.rollout.vllm_transfer import DiskTransfer, NCCLTransfer, Transfer
from postrain.types import Completion

CONNECTIONS = 128
"""Concurrent requests to a server, which batches them."""
WeightTransfer = Literal["auto", "nccl", "disk"]


@dataclass(frozen=True)
class Server:
    """One server; see `postrain.rollout.vllm_backend.Replica`."""

    http: Connection
    adapter: str | None = None
    """Name of the adapter to sample from."""

    @property
    def where(self) -> str:
        """See `Replica.where`."""
        return f"rollout.url={self.http.url}"

    def complete(self, prompts: Sequence[Tensor], settings: Sequence[Mapping[str, Any]]) -> list[Completion]:
        """See `Replica.complete`."""
        name = self.adapter or self.http.request("/v1/models")["data"][0]["id"]

        def one(prompt: Tensor, values: Mapping[str, Any]) -> Completion:
            body = {"model": name, "prompt": prompt.tolist(), "return_token_ids": True, **values}
            return completion_of(self.http.request("/v1/completions", body)["choices"][0])

        with ThreadPoolExecutor(CONNECTIONS) as pool:
            return list(pool.map(one, prompts, settings))


class Servers:
    """See `postrain.rollout.vllm_backend.Backend`. Each rank requests its own completions; rank 0 transfers weights."""

    def __init__(
        self,
        connections: Connections,
        model: nn.Module,
        *,
        transfer: WeightTransfer,
        folder: str | None,
        dtype: torch.dtype,
        enable_lora: bool,
    ) -> None:
        self.http, self.where = connections, connections.where
        self.version = ""
        self.replicas = [Server(connection) for connection in connections.servers]
        path = Path(folder) if folder else None
        nccl = transfer == "nccl" or (transfer == "auto" and unwrapped(model).device.type == "cuda")
        self.transfer: Transfer = NCCLTransfer(connections) if nccl else DiskTransfer(connections, path, dtype)
        if enable_lora:
            check_adapter(model)
            self.transfer = AdapterTransfer(connections, self.transfer, path)

    def load(self, model: nn.Module) -> None:
        """See `Backend.load`; all ranks wait until it is done."""
        sends = collectives.rank() == 0
        # Until all ranks are here, others may still sample from the earlier weights.
        plans = collectives.gather((uuid.uuid4().hex, not self.has_weights()) if sends else None)
        assert plans[0]
        version, fresh = plans[0]
        adapter = self.transfer.send(model, version, fresh=fresh)
        if sends:
            # The prefix cache holds prompts computed with the earlier weights.
            for server, answer in zip(self.replicas, self.http.request("/reset_prefix_cache", {}), strict=True):
                if not answer["success"]:
                    raise ConfigError(f"{server.where}: it could not reset its prefix cache; end its other requests")
            self.http.request("/update_weight_version", {"new_version": version})
        collectives.gather(None)
        self.version, self.replicas = version, [Server(each.http, adapter) for each in self.replicas]

    def has_weights(self) -> bool:
        """See `Backend.has_weights`."""
        return all(info["weight_version"] == self.version for info in self.http.request("/weight_info"))

    def complete(self, prompts: Sequence[Tensor], settings: Sequence[Mapping[str, Any]]) -> list[Completion]:
        """See `Replica.complete`. Each server gets a contiguous part of the rows of all ranks, so that completions of
        a prompt share its prefix cache."""
        world, size, servers = collectives.world_size(), len(prompts), len(self.replicas)
        # Of W ranks with N rows each, rank r has rows r·N to (r + 1)·N − 1; server s of S starts at s·W·N / S.
        starts = [each * world * size // servers - collectives.rank() * size for each in range(servers + 1)]
        cuts = [min(max(start, 0), size) for start in starts]
        parts = [slice(*cut) for cut in pairwise(cuts)]
        with ThreadPoolExecutor(servers) as pool:
            found = pool.map(
                lambda server, part: server.complete(prompts[part], settings[part]) if prompts[part] else [],
                self.replicas,
                parts,
            )
            return list(chain.from_iterable(found))

    def release(self) -> None:
        """See `Backend.release`."""


def completion_of(choice: Mapping[str, Any]) -> Completion:
    """A choice of the server's answer as a completion."""
    return Completion(
        torch.tensor(choice["token_ids"], dtype=torch.long),
        torch.tensor(choice["logprobs"]["token_logprobs"], dtype=torch.float32),
        finished=choice["finish_reason"] == "stop",
    )
