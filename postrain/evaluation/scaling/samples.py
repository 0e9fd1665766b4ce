"""Samples completions for test-time scaling, with their cost in tokens and seconds. Grading is in grader.py.

Seeds depend on (seed, purpose, prompt, sample index), so the first samples do not depend on the number of samples.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import TypeVar

from postrain.data.kinds.prompt import Prompts
from postrain.errors import ConfigError
from postrain.evaluation.task import EvalModel
from postrain.hardware.shares import map_items
from postrain.rollout.engine import greedy as greedy_engine
from postrain.rollout.turns import Rollout, roll_out
from postrain.seeds import derive_seed
from postrain.types import Sampling

T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """One completion."""

    text: str
    tokens: int
    """Number of sampled tokens; for a search, all tokens it sampled."""
    ids: tuple[int, ...] = ()
    """Token ids after the prompt, including environment turns."""
    logps: tuple[float, ...] = ()
    """Log-probability of each of `ids`; 0 for environment turns."""

    @property
    def logprob(self) -> float:
        """Mean token log-probability."""
        return sum(self.logps) / max(self.tokens, 1)


@dataclass(frozen=True)
class Samples:
    """The same number of completions for each prompt."""

    by_prompt: tuple[tuple[Sample, ...], ...]
    seconds: float
    """Wall time of sampling all completions."""

    def flat(self) -> tuple[list[int], list[str]]:
        """The index of the prompt and the text of every completion, in order."""
        numbered = [(index, one.text) for index, samples in enumerate(self.by_prompt) for one in samples]
        return [index for index, _ in numbered], [text for _, text in numbered]

    def grouped(self, values: Iterable[T]) -> tuple[tuple[T, ...], ...]:
        """The values of all completions, by prompt."""
        found = iter(values)
        return tuple(tuple(next(found) for _ in samples) for samples in self.by_prompt)

    def tokens(self) -> list[float]:
        """Mean sampled tokens per completion, for each prompt."""
        return [fmean(one.tokens for one in samples) for samples in self.by_prompt]

    def seconds_for(self, count: int) -> float:
        """Seconds for `count` completions of a prompt; batched decoding is split evenly."""
        return self.seconds * count / sum(map(len, self.by_prompt))


@dataclass
class Timer:
    """Seconds spent inside a block."""

    seconds: float = 0.0


@contextmanager
def timed() -> Iterator[Timer]:
    """Measures the wall time of a block."""
    clock, start = Timer(), time.perf_counter()
    yield clock
    clock.seconds = time.perf_counter() - start


def check_temperature(sampling: Sampling) -> None:
    """Raises ConfigError for temperature 0, where all samples of a prompt are equal."""
    if sampling.temperature == 0:
        raise ConfigError(
            "rollout.temperature=0: all samples of a prompt would be equal; test-time scaling needs a temperature of "
            "more than 0"
        )


def draw(eval_model: EvalModel, prompts: Prompts, count: int, purpose: str, *, greedy: bool = False) -> Samples:
    """Samples `count` completions of each prompt, or decodes greedily."""
    indices = [index for index in range(len(prompts)) for _ in range(count)]
    seeds = [
        derive_seed(eval_model.seed, purpose, index, number) for index in range(len(prompts)) for number in range(count)
    ]

    def drawn(items: range) -> list[Sample]:
        rollouts = roll_out(
            greedy_engine(eval_model.engine) if greedy else eval_model.engine,
            eval_model.model,
            eval_model.template,
            prompts.select([indices[item] for item in items]),
            seeds=[seeds[item] for item in items],
            environment=eval_model.environment,
        )
        return [_sample(eval_model, rollout) for rollout in rollouts]

    with timed() as clock:
        found = map_items(len(seeds), drawn)
    return Samples(tuple(tuple(found[at : at + count]) for at in range(0, len(found), count)), clock.seconds)


def _sample(eval_model: EvalModel, rollout: Rollout) -> Sample:
    logps_L = rollout.logps.new_zeros(len(rollout.ids))
    logps_L[rollout.policy_mask] = rollout.logps
    return Sample(
        eval_model.template.decode(rollout.ids),
        rollout.policy_tokens(),
        tuple(rollout.ids.tolist()),
        tuple(logps_L.tolist()),
    )
