"""Sampling with vLLM, on the policy's GPU or behind a server, in place of the engine in this process.

The policy's weights are handed over before the first completion after they have changed. What vLLM says of a token's
log-probability comes from other kernels in another precision, and under a server's own settings perhaps of another
temperature: it is recorded to be compared, and methods compute their own (`exact` is False). Left out: mixtures of two
models, tensor parallelism, adapters served beside the weights. vLLM is the extra `vllm`, imported when it is used.
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
    """Where vLLM runs."""

    def load(self, model: nn.Module) -> None:
        """Takes over the weights of `model`, and forgets what was computed with earlier ones."""
        ...

    def complete(self, prompts: Sequence[Tensor], settings: Sequence[Mapping[str, Any]]) -> list[Completion]:
        """One completion for each prompt, in order; `settings` are vLLM's sampling parameters by name."""
        ...


@dataclass
class VLLMState:
    """What is running, once it is."""

    backend: Backend | None = None
    loaded: tuple[int, ...] | None = None
    """The fingerprint of the weights it has."""


@dataclass(frozen=True, kw_only=True, eq=False)
class VLLMEngine:
    """See `postrain.rollout.engine.Engine`."""

    max_new_tokens: Size = 48
    """Tokens of a completion at most."""
    temperature: NonNegative = 1.0
    """Divides the logits before sampling; 0 is greedy."""
    top_k: CountOrZero = 0
    """Draw among this many likeliest tokens; 0 is off."""
    top_p: Annotated[float, Interval(gt=0, le=1)] = 1.0
    """Draw among the likeliest tokens that hold this much probability."""
    min_p: Fraction = 0.0
    """Draw no token less likely than this share of the likeliest; 0 is off."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion."""
    mode: Literal["colocated", "server"] = "colocated"
    """colocated: vLLM shares the policy's GPU. server: it runs behind `url` on another, started with settings of its
    own (gpu_memory_utilization, max_model_len and sleep do nothing then)."""
    gpu_memory_utilization: Annotated[float, Interval(gt=0, lt=1)] = 0.3
    """colocated: share of the GPU's memory that vLLM takes for its copy of the weights and its cache."""
    max_model_len: Count | None = None
    """colocated: tokens of prompt and completion that it has room for; null is the model's context."""
    sleep: bool = False
    """colocated: whether that memory is given back between rollouts, weights being kept in main memory."""
    url: Annotated[str | None, Confirm("sends weights and prompts there")] = None
    """server: its address, such as http://localhost:8000"""
    timeout: Positive = 600.0
    """server: seconds to wait for a completion."""
    _state: VLLMState = field(default_factory=VLLMState, repr=False)
    """No key: a field, so that the same engine with other settings (a greedy one) samples from the same vLLM."""

    def __post_init__(self) -> None:
        if not torch.cuda.is_available():
            raise ConfigError("rollout=vllm needs a GPU and torch sees none; rollout=local samples on a CPU")
        if (self.mode == "server") != (self.url is not None):
            raise ConfigError(f"rollout.url={self.url}: expected an address with rollout.mode=server, and only there")

    @property
    def sampling(self) -> Sampling:
        """How it draws."""
        return Sampling(self.max_new_tokens, self.temperature, self.top_k, self.top_p, self.min_p, self.stop)

    @property
    def exact(self) -> bool:
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
        # Said because a server would else take what the model's generation config says.
        "repetition_penalty": 1.0,
        "stop_token_ids": list(stop.ids),
        "stop": list(stop.texts),
        "include_stop_str_in_output": True,
        # Stop texts are looked for in the text as it stands, special tokens and all.
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        # The drawn token's own, and no others.
        "logprobs": 0,
    }


class Colocated:
    """vLLM in this process, on the policy's GPU."""

    def __init__(
        self, model: nn.Module, *, gpu_memory_utilization: float, max_model_len: int | None, sleep: bool
    ) -> None:
        # Weights are handed over as tensors of this process, so its engine may not start another.
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
            # Of the distribution that is drawn from: by default vLLM reports it before the temperature.
            logprobs_mode="processed_logprobs",
            # Else the model's generation config would add settings of its own.
            generation_config="vllm",
            # Ranks have a process group already, in which each is to have an engine for itself.
            distributed_executor_backend="external_launcher" if collectives.world_size() > 1 else None,
        )

    def load(self, model: nn.Module) -> None:
        """See `Backend.load`."""
        self._wake()
        self.llm.apply_model(lambda inner: inner.load_weights(merged_weights(model)))
        # Prompts computed with the earlier weights would else be taken from the cache.
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
    """Where vLLM finds the architecture and the tokenizer; the weights there are replaced at once."""
    name = unwrapped(model).name_or_path
    if not name:
        raise ConfigError(
            "rollout=vllm starts from a directory or Hub name that plain transformers loads, and this model (GGUF, "
            "merged adapters or fresh weights) has none; train from an exported run folder, or use rollout=local"
        )
    return name
