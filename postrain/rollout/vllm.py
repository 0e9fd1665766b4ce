"""Sampling with vLLM, on the policy's GPU or on a server.

The policy's weights are transferred before the first completion after an update. vLLM's log-probabilities come from
other kernels in another precision (and a server may use another temperature): they are recorded for comparison, and
methods recompute old log-probabilities (`exact_logps` is False). Not supported: mixtures of two models, tensor
parallelism, serving adapters. vLLM is the extra `vllm`, imported on first use.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol

import torch
from annotated_types import Interval
from torch import Tensor, nn

from postrain.config.extras import load
from postrain.config.schema import Confirm
from postrain.errors import ConfigError
from postrain.hardware import collectives
from postrain.models.parts import unwrapped
from postrain.models.weight_sync import fingerprint, merged_weights
from postrain.rollout.engine import Mixture
from postrain.rollout.vllm_server import Server
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


class Backend(Protocol):
    """A running vLLM: in this process or a server."""

    def load(self, model: nn.Module) -> None:
        """Loads the weights of `model` and resets the prefix cache."""
        ...

    def complete(self, prompts: Sequence[Tensor], settings: Sequence[Mapping[str, Any]]) -> list[Completion]:
        """One completion for each prompt, in order; `settings` are vLLM's sampling parameters by name."""
        ...


@dataclass
class VLLMState:
    """The running backend; None before the first completion."""

    backend: Backend | None = None
    loaded: tuple[int, ...] | None = None
    """Fingerprint of the loaded weights."""


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
    mode: Literal["colocated", "server"] = "colocated"
    """colocated: vLLM shares the policy's GPU. server: vLLM runs at `url`; its own
    command line sets gpu_memory_utilization, max_model_len and sleep, which have no effect here."""
    gpu_memory_utilization: Annotated[float, Interval(gt=0, lt=1)] = 0.3
    """colocated: fraction of GPU memory for vLLM's copy of the weights and its KV cache."""
    max_model_len: Count | None = None
    """colocated: maximum tokens of prompt and completion; null is the model's context length."""
    sleep: bool = False
    """colocated: whether vLLM frees GPU memory between rollouts and keeps its weights in CPU memory."""
    url: Annotated[str | None, Confirm("sends weights and prompts there")] = None
    """server: its address, such as http://localhost:8000"""
    timeout: Positive = 600.0
    """server: seconds to wait for a completion."""
    _state: VLLMState = field(default_factory=VLLMState, repr=False)
    """Not a config key. A field, so that a copy of the engine (a greedy one) uses the same vLLM."""

    def __post_init__(self) -> None:
        if not torch.cuda.is_available():
            raise ConfigError("rollout=vllm needs a GPU and torch sees none; rollout=local samples on a CPU")
        if (self.mode == "server") != (self.url is not None):
            raise ConfigError(f"rollout.url={self.url}: expected an address with rollout.mode=server, and only there")

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
        host = self._state
        if host.backend is None:
            host.backend = self._start(model)
        if (now := fingerprint(model)) != host.loaded:
            host.backend.load(model)
            host.loaded = now
        limits = stop.limits or [self.max_new_tokens] * len(prompts)
        rows = zip(seeds, limits, strict=True)
        return host.backend.complete(prompts, [settings(self.sampling, seed, limit, stop) for seed, limit in rows])

    def _start(self, model: nn.Module) -> Backend:
        if self.url is not None:
            return Server(self.url, timeout=self.timeout)
        return Colocated(
            model,
            gpu_memory_utilization=self.gpu_memory_utilization,
            max_model_len=self.max_model_len,
            sleep=self.sleep,
        )


def settings(sampling: Sampling, seed: int, limit: int, stop: Stop) -> dict[str, Any]:
    """A row's sampling parameters as vLLM calls them, in this process and over HTTP alike."""
    return {
        "max_tokens": limit,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k or -1,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "seed": seed,
        # Explicit, since a server would use the model's generation config.
        "repetition_penalty": 1.0,
        "stop_token_ids": list(stop.ids),
        "stop": list(stop.texts),
        "include_stop_str_in_output": True,
        # Stop texts are matched in the text including special tokens.
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        # Of the sampled token only.
        "logprobs": 0,
    }


class Colocated:
    """vLLM in this process, on the policy's GPU."""

    def __init__(
        self, model: nn.Module, *, gpu_memory_utilization: float, max_model_len: int | None, sleep: bool
    ) -> None:
        # Weights are passed as tensors of this process, so vLLM must not start another process.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("RANK", str(collectives.rank()))
        self.vllm = load("vllm")
        self.sleeps, self.asleep = sleep, False
        self.llm = self.vllm.LLM(
            model=directory_of(model),
            trust_remote_code=False,
            dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
            gpu_memory_utilization=gpu_memory_utilization,
            max_model_len=max_model_len,
            enable_sleep_mode=sleep,
            # Log-probs after temperature and truncation; vLLM's default is before.
            logprobs_mode="processed_logprobs",
            # Ignore the model's generation config.
            generation_config="vllm",
            # Ranks already have a process group; each one needs its own engine.
            distributed_executor_backend="external_launcher" if collectives.world_size() > 1 else None,
        )

    def load(self, model: nn.Module) -> None:
        """See `Backend.load`."""
        self._wake()
        self.llm.apply_model(lambda inner: inner.load_weights(merged_weights(model)))
        # The prefix cache holds prompts computed with the earlier weights.
        self.llm.reset_prefix_cache()

    def complete(self, prompts: Sequence[Tensor], settings: Sequence[Mapping[str, Any]]) -> list[Completion]:
        """See `Backend.complete`."""
        self._wake()
        outputs = self.llm.generate(
            [self.vllm.TokensPrompt(prompt_token_ids=ids.tolist()) for ids in prompts],
            [self.vllm.SamplingParams(**values) for values in settings],
            use_tqdm=False,
        )
        if self.sleeps:
            self.llm.sleep(level=1)
            self.asleep = True
        return [completion_of(output.outputs[0]) for output in outputs]

    def _wake(self) -> None:
        if self.asleep:
            self.llm.wake_up()
            self.asleep = False


def completion_of(output: Any) -> Completion:
    """vLLM's CompletionOutput as ours: a list of {token: its log-probability} beside the tokens."""
    ids = list(output.token_ids)
    logps = [float(known[token].logprob) for token, known in zip(ids, output.logprobs, strict=True)]
    return Completion(
        torch.tensor(ids, dtype=torch.long),
        torch.tensor(logps, dtype=torch.float32),
        finished=output.finish_reason == "stop",
    )


def directory_of(model: nn.Module) -> str:
    """Directory of architecture and tokenizer for vLLM; its weights are replaced by the policy's."""
    name = unwrapped(model).name_or_path
    if not name:
        raise ConfigError(
            "rollout=vllm starts from a directory or Hub name that plain transformers loads, and this model (GGUF, "
            "merged adapters or fresh weights) has none; train from an exported run folder, or use rollout=local"
        )
    return name
