"""Sampling from a Hugging Face causal LM in this process; the docstring of `decode/` explains the algorithm."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor, nn

from postrain.errors import ConfigError
from postrain.models.directory import context_length
from postrain.models.parts import unwrapped
from postrain.models.reference import in_eval_mode
from postrain.processor import supports_int8, threads, warn_if_slow
from postrain.rollout.decode.backend import DecodeBackend, MixtureBackend, backend_for
from postrain.rollout.decode.cache import CacheSpec
from postrain.rollout.decode.loop import DecodeLoop
from postrain.rollout.decode.sampling import truncates
from postrain.rollout.decode.timing import DTYPES, DecodeTime, decode_times
from postrain.rollout.engine import Mixture, Overlap
from postrain.types import Completion, CountOrZero, Fraction, NonNegative, Sampling, Size, Stop


@dataclass(frozen=True, kw_only=True)
class LocalEngine:
    """Samples with the policy's own weights."""

    max_new_tokens: Size = 256
    """Maximum number of tokens of a completion, over all its turns."""
    temperature: NonNegative = 1.0
    """Divides the logits before sampling; 0 is greedy."""
    top_k: CountOrZero = 0
    """Sample from the k most likely tokens; 0 disables it."""
    top_p: Annotated[float, Interval(gt=0, le=1)] = 1.0
    """Sample from the most likely tokens with this total probability (nucleus); 1 disables it."""
    min_p: Fraction = 0.0
    """Sample from tokens with at least this fraction of the largest probability; 0 disables it."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion, besides the template's end tokens."""
    batch_rows: Size = 128
    """Maximum number of rows decoded together. Changes memory use and speed, not the completions."""
    # No compiled decoding: on a CPU, torch.compile took 10 s to save 0.5 of 6.6 ms per step (nano, 128 rows), and it
    # does not support oneDNN's packed weights, which halve a step of SmolLM2.
    dtype: Literal["policy", "bf16", "int8", "auto"] = "policy"
    """Precision of decode steps: that of the policy's forward pass (bf16 with trainer.precision=bf16-mixed), bf16, or
    int8 (products rounded to 8 bits, CPU only). For bf16 and int8, old log-probabilities are recomputed and completions
    weighted (method.rollout_importance_sampling_mode). auto: training on a CPU measures them before the first rollout;
    one that is 15 % faster is kept in config.yaml."""
    overlap: Overlap = 0
    """1: sample the next batch before the current one is learned, as `rollout=vllm` does at the same time; off-policy
    by one update, and not faster. 0: sample each batch from the policy that learns it."""

    @property
    def sampling(self) -> Sampling:
        """The sampling settings."""
        return Sampling(self.max_new_tokens, self.temperature, self.top_k, self.top_p, self.min_p, tuple(self.stop))

    @property
    def exact_logps(self) -> bool:
        """See `Engine.exact_logps`."""
        return self.dtype in ("policy", "auto") and not truncates(self.sampling) and not self.overlap

    @torch.no_grad()
    def generate(
        self, model: nn.Module | Mixture, prompts: Sequence[Tensor], *, seeds: Sequence[int], stop: Stop
    ) -> list[Completion]:
        """See `Engine.generate`."""
        if not prompts:
            return []
        policy = model.policy if isinstance(model, Mixture) else model
        spec = self._spec(prompts, stop.limits or [self.max_new_tokens] * len(prompts))
        self._check_context(policy, spec)
        on_cpu = unwrapped(policy).device.type == "cpu"
        if self.dtype == "bf16" and on_cpu:
            warn_if_slow("rollout.dtype", torch.bfloat16)
        if self.dtype == "int8" and not (on_cpu and supports_int8()):
            raise ConfigError("rollout.dtype=int8: needs a CPU with PyTorch's int8 operators; use rollout.dtype=policy")
        with in_eval_mode(policy), threads_for(policy):
            backend = self._backend(model, spec)
            return DecodeLoop(backend, prompts, seeds, self.sampling, stop, slots=spec.slots).run()

    def decode_times(self, model: nn.Module, prompts: Sequence[Tensor]) -> dict[str, DecodeTime]:
        """Measures a rollout of these prompts in each precision that runs fast here, the policy's first; {} if that is
        the only one."""
        spec = self._spec(prompts, [self.max_new_tokens] * len(prompts))
        with in_eval_mode(model), threads_for(model):
            return decode_times(model, prompts, spec, self.sampling)

    def _spec(self, prompts: Sequence[Tensor], limits: Sequence[int]) -> CacheSpec:
        return CacheSpec(
            slots=min(self.batch_rows, len(prompts)),
            prompt=max(map(len, prompts)),
            new_tokens=max(limits),
            row=max(len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True)),
        )

    def _backend(self, model: nn.Module | Mixture, spec: CacheSpec) -> DecodeBackend:
        dtype = DTYPES.get(self.dtype)
        if not isinstance(model, Mixture):
            return backend_for(model, spec=spec, dtype=dtype)
        policy = backend_for(model.policy, spec=spec, dtype=dtype)
        with model.reference.scoring() as frozen:
            theirs = backend_for(frozen, spec=spec, dtype=dtype)
        return MixtureBackend(policy, theirs, model.reference, model.coef)

    def _check_context(self, policy: nn.Module, spec: CacheSpec) -> None:
        """Raises ConfigError if a prompt and its completion can exceed the model's context."""
        context = context_length(unwrapped(policy).config.to_dict())
        if spec.row > context:
            raise ConfigError(
                f"rollout.max_new_tokens={self.max_new_tokens}: a prompt of {spec.row - spec.new_tokens} tokens "
                f"and its completion need more than the model's {context} positions; shorten one of them"
            )


# Up to this width the operations of a decode step are too small for several threads.
SINGLE_THREAD_WIDTH = 512


def threads_for(policy: nn.Module) -> AbstractContextManager[None]:
    """One thread inside the block for a narrow model on a CPU, where a second one slows decoding down."""
    inner = unwrapped(policy)
    narrow = inner.device.type == "cpu" and inner.config.get_text_config().hidden_size <= SINGLE_THREAD_WIDTH
    return threads(1 if narrow else None)
