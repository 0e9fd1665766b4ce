"""A teacher behind a vLLM server: the log-probabilities of its most likely tokens at every token of a row.

    vllm serve MODEL --max-logprobs 64

The model needs the student's tokenizer: rows are sent as token ids. Other OpenAI-compatible servers do not give
log-probabilities of given tokens (`prompt_logprobs`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from postrain.errors import ConfigError
from postrain.models.top_k import TopK
from postrain.rollout.vllm_http import Connection, ServerLost
from postrain.types import Rows

CONNECTIONS = 32
"""Concurrent requests, which the server batches."""
PROBE = "Tom's 27 balls cost 3.50 €:\n\tdef f(x): return x"


@dataclass(frozen=True)
class ServerTeacher:
    """A teacher at an address."""

    url: str
    top_k: int
    timeout: float

    @cached_property
    def http(self) -> Connection:
        """The connection, with this teacher's key in its messages."""
        return Connection(
            self.url.rstrip("/").removesuffix("/v1"),
            self.timeout,
            key="teacher",
            start=f"vllm serve MODEL --max-logprobs {self.top_k}",
            slow="raise method.teacher_timeout or lower method.batch_size",
        )

    @cached_property
    def model(self) -> str:
        """Name of the first model on the server."""
        return self._field("/v1/models", None, "data", 0, "id")

    def check_tokens(self, tokenizer: Any) -> None:
        """Raises ConfigError if the server's tokenizer gives other tokens than the student's."""
        body = {"model": self.model, "prompt": PROBE, "add_special_tokens": False}
        theirs, ours = self._field("/tokenize", body, "tokens"), tokenizer(PROBE, add_special_tokens=False)
        if theirs != list(ours["input_ids"]):
            raise ConfigError(
                f"teacher={self.url}: the tokenizer of {self.model} gives other tokens than the student's; serve a "
                "model of the same family, or give the teacher as a directory with method.cross_tokenizer=true"
            )

    def _field(self, path: str, body: Mapping[str, Any] | None, *keys: str | int) -> Any:
        """A field of the response. Raises ConfigError if it has none."""
        found = self.http.request(path, body)
        try:
            for key in keys:
                found = found[key]
        except (LookupError, TypeError):
            raise ConfigError(
                f"teacher={self.url}: {path} gives no {'.'.join(map(str, keys))}; expected vLLM, started with "
                f"{self.http.start}"
            ) from None
        return found

    def score(self, rows: Rows) -> TopK:
        """The most likely tokens at each supervised token of each row. Waits for a server that restarts."""
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            found = list(pool.map(self._row, rows.ids, rows.supervised))
        ids, logps = zip(*found, strict=True)
        return TopK(ids, logps)

    def _row(self, ids: Tensor, supervised: Tensor) -> tuple[Tensor, Tensor]:
        body = {
            "model": self.model,
            "prompt": ids.tolist(),
            "max_tokens": 1,
            "temperature": 1.0,
            "prompt_logprobs": self.top_k,
        }
        try:
            answer = self.http.request("/v1/completions", body)
        except ServerLost as lost:
            self.http.wait(lost, self.timeout)
            answer = self.http.request("/v1/completions", body)
        try:
            positions = answer["choices"][0]["prompt_logprobs"]
            tokens = zip(ids.tolist(), supervised.tolist(), positions, strict=True)
            known = [self._known(table, token) for token, in_loss, table in tokens if in_loss]
        except (LookupError, TypeError, ValueError, AttributeError):
            raise ConfigError(
                f"teacher={self.url}: /v1/completions gives no prompt_logprobs for {self.top_k} tokens; expected vLLM, "
                f"started with {self.http.start}"
            ) from None
        return torch.tensor([k for k, _ in known]), torch.tensor([p for _, p in known], dtype=torch.float32)

    def _known(self, table: Mapping[str, Mapping[str, Any]], token: int) -> tuple[Sequence[int], Sequence[float]]:
        """The `top_k` most likely tokens; the row's token replaces the last one if it is not among them."""
        found = {int(name): float(value["logprob"]) for name, value in table.items()}
        order = sorted(found, key=lambda name: -found[name])[: self.top_k]
        if token not in order:
            order[-1] = token
        if len(order) < self.top_k:
            raise ValueError("too few tokens")
        return order, [found[name] for name in order]
