"""CPU seconds of decode steps in each precision that the model and the processor support, for `rollout.dtype=auto`.

CPU time of the process, because other processes may use the machine. The decoders themselves run: the weights are
copied as before every rollout, and a few steps are made with all rows in the middle of their completions. The cache
holds zeros there, which changes no time.

Axes: B rows in slots.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from postrain.processor import supports_int8, supports_packed_weights
from postrain.rollout.decode.backend import FastBackend, backend_for
from postrain.rollout.decode.cache import CacheSpec
from postrain.rollout.decode.sampling import draw
from postrain.types import Sampling

REPEATS, ENOUGH = 4, 0.1
"""Repetitions of a measurement, and the seconds of it that suffice. The fastest counts: others were interrupted."""
ROUND = 0.3
"""Seconds of measurements after which no precision is measured again."""
DTYPES: dict[str, torch.dtype | None] = {"policy": None, "bf16": torch.bfloat16, "int8": torch.int8}
"""The dtype of weights in decode steps, by the value of `rollout.dtype`; None is that of the forward pass."""


@dataclass(frozen=True)
class DecodeTime:
    """CPU seconds of the parts of a rollout that depend on its precision."""

    copying: float
    """Of copying the weights, once per rollout."""
    step: float
    """Of one token of all rows in slots."""

    def __or__(self, other: DecodeTime) -> DecodeTime:
        """The fastest of two measurements."""
        return DecodeTime(min(self.copying, other.copying), min(self.step, other.step))

    def total(self, steps: int) -> float:
        """CPU seconds of a rollout."""
        return self.copying + steps * self.step


def precisions(model: nn.Module, spec: CacheSpec) -> list[str]:
    """The values of `rollout.dtype` that run fast here: `policy`, and those of other dtypes with a fast decoder."""
    policy = backend_for(model, spec=spec, dtype=None)
    if not isinstance(policy, FastBackend) or policy.device.type != "cpu":
        return ["policy"]
    bf16 = policy.cache_dtype != torch.bfloat16 and supports_packed_weights(torch.bfloat16)
    return ["policy", *(["bf16"] if bf16 else []), *(["int8"] if supports_int8() else [])]


def decode_times(
    model: nn.Module, prompts: Sequence[Tensor], spec: CacheSpec, sampling: Sampling
) -> dict[str, DecodeTime]:
    """The time of each precision of `precisions`; {} if there is one only."""
    names, began = precisions(model, spec), time.process_time()
    found: dict[str, DecodeTime] = {}
    # In turns: other processes slow all of them down.
    while len(names) > 1 and (not found or time.process_time() - began < ROUND):
        for name in names:
            taken = decode_time(model, prompts, spec, sampling, DTYPES[name])
            found[name] = found.get(name, taken) | taken
    return found


@torch.no_grad()
def decode_time(
    model: nn.Module,
    prompts: Sequence[Tensor],
    spec: CacheSpec,
    sampling: Sampling,
    dtype: torch.dtype | None,
    clock: Callable[[], float] = time.process_time,
) -> DecodeTime:
    """Measures the decoder of `precisions` with `spec.slots` rows, whose prompts are the first of `prompts`."""
    began = clock()
    backend = backend_for(model, spec=spec, dtype=dtype)
    copying = clock() - began
    assert isinstance(backend, FastBackend)
    rows, slots_B = prompts[: spec.slots], torch.arange(spec.slots)
    numbers: dict[tuple[int, ...], int] = {}
    prompt_B = torch.tensor([numbers.setdefault(tuple(ids.tolist()), len(numbers)) for ids in rows])
    lengths_B = torch.tensor([len(ids) for ids in rows])
    # One token of each prompt is prefilled; the rest of the row is zeros.
    backend.admit(backend.prefill([torch.tensor(ids[:1]) for ids in numbers]), prompt_B, slots_B)
    backend.cache.start_S[:] = spec.prompt - lengths_B
    backend.cache.length_S[:] = lengths_B + max(0, spec.new_tokens - REPEATS - 1) // 2
    tokens_B, uniform_B = torch.stack([ids[-1] for ids in rows]), torch.full((spec.slots,), 0.5)
    backend.step(tokens_B)  # the first step prepares the operators
    return DecodeTime(copying, fastest(lambda: draw(backend.step(tokens_B), uniform_B, sampling), clock))


def fastest(run: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    """CPU seconds of a function, measured REPEATS times, less often if it takes long."""
    found: list[float] = []
    while len(found) < REPEATS and sum(found) < ENOUGH:
        began = clock()
        run()
        found.append(clock() - began)
    return min(found)
