"""Sampling from a Hugging Face causal LM in this process.

Each distinct prompt is run once however many completions it gets; rows that have ended make room for waiting ones; the
log-probability of each token is recorded as it is drawn. The loop is in decoding.py; what a step of it is made of, in
steppers.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor, nn

from postrain.models.directory import context_length
from postrain.models.parts import unwrapped
from postrain.models.reference import in_eval_mode
from postrain.processor import warn_if_slow
from postrain.rollout.decode.backend import stepper_for
from postrain.rollout.decode.cache import Room
from postrain.rollout.decode.loop import Decoding
from postrain.rollout.decode.steppers import Stepper
from postrain.rollout.engine import Mixture
from postrain.rollout.mixture import MixtureStepper
from postrain.rollout.sampling import cuts
from postrain.types import Completion, ConfigError, CountOrZero, Fraction, NonNegative, Sampling, Size, Stop


@dataclass(frozen=True, kw_only=True)
class LocalEngine:
    """Samples with the policy's own weights."""

    max_new_tokens: Size
    temperature: NonNegative
    """0 is greedy."""
    top_k: CountOrZero
    """Draw among this many likeliest tokens; 0 is off."""
    top_p: Annotated[float, Interval(gt=0, le=1)]
    """Draw among the likeliest tokens that hold this much probability."""
    min_p: Fraction
    """Draw among tokens at least this share as likely as the likeliest; 0 is off."""
    stop: tuple[str, ...]
    """Texts that end a completion, besides the template's end tokens."""
    batch_rows: Size
    """Rows that are decoded together; a memory knob that changes no completion."""
    dtype: Literal["policy", "bf16"]
    """What single tokens are computed in: the policy's own type, or copies of the weights in bfloat16."""

    @property
    def sampling(self) -> Sampling:
        """How it draws."""
        return Sampling(self.max_new_tokens, self.temperature, self.top_k, self.top_p, self.min_p, tuple(self.stop))

    @property
    def exact(self) -> bool:
        """See `Engine.exact`."""
        return self.dtype == "policy" and not cuts(self.sampling)

    @torch.no_grad()
    def generate(
        self, model: nn.Module | Mixture, prompts: Sequence[Tensor], *, keys: Sequence[int], stop: Stop
    ) -> list[Completion]:
        """See `Engine.generate`."""
        if not prompts:
            return []
        policy = model.policy if isinstance(model, Mixture) else model
        limits = stop.limits or [self.max_new_tokens] * len(prompts)
        room = Room(
            slots=min(self.batch_rows, len(prompts)),
            prompt=max(map(len, prompts)),
            new_tokens=max(limits),
            row=max(len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True)),
        )
        self._check_context(policy, room)
        if self.dtype == "bf16" and unwrapped(policy).device.type == "cpu":
            warn_if_slow("rollout.dtype", torch.bfloat16)
        with in_eval_mode(policy), threads_for(policy):
            stepper = self._stepper(model, room)
            return Decoding(stepper, prompts, keys, self.sampling, stop, slots=room.slots).run()

    def _stepper(self, model: nn.Module | Mixture, room: Room) -> Stepper:
        dtype = torch.bfloat16 if self.dtype == "bf16" else None
        if not isinstance(model, Mixture):
            return stepper_for(model, room=room, dtype=dtype)
        policy = stepper_for(model.policy, room=room, dtype=dtype)
        with model.reference.scoring() as frozen:
            theirs = stepper_for(frozen, room=room, dtype=dtype)
        return MixtureStepper(policy, theirs, model.reference, model.coef)

    def _check_context(self, policy: nn.Module, room: Room) -> None:
        """Beyond the positions a model was made for it fails, or writes nonsense."""
        context = context_length(unwrapped(policy).config.to_dict())
        if room.row > context:
            raise ConfigError(
                f"rollout.max_new_tokens={self.max_new_tokens}: a prompt of {room.row - room.new_tokens} tokens "
                f"and its completion need more than the model's {context} positions; shorten one of them"
            )


# Below this width a decode step is made of operations too small to be shared between threads.
NARROW = 512


@contextmanager
def threads_for(policy: nn.Module) -> Iterator[None]:
    """One thread inside the block where a second one would only be waited for: a narrow model on a CPU."""
    inner, threads = unwrapped(policy), torch.get_num_threads()
    if inner.device.type == "cpu" and inner.config.get_text_config().hidden_size <= NARROW:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
