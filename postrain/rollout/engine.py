"""The interface between online methods and sampling engines.

An engine works on token ids (and stop texts); no template, no reward. `local.py` samples from any Hugging Face causal
LM in this process, `vllm.py` through vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Protocol, runtime_checkable

from annotated_types import Interval
from torch import Tensor, nn

from postrain.errors import ConfigError
from postrain.models.reference import Reference
from postrain.types import Completion, Sampling, Stop


@dataclass(frozen=True)
class Mixture:
    """The geometric mixture of a policy and its reference, renormalised: π^(1−c) · ref^c (Munos et al. 2023, eq. 6)."""

    policy: nn.Module
    reference: Reference
    coef: Annotated[float, Interval(ge=0, le=1)]
    """c, the reference's share."""


class Engine(Protocol):
    """Continues prompts."""

    @property
    def sampling(self) -> Sampling:
        """The sampling settings."""
        ...

    @property
    def exact_logps(self) -> bool:
        """True if recorded log-probabilities equal the policy's up to rounding: no top-k, top-p or min-p, no weights in
        lower precision or of an earlier policy. If False, methods recompute old log-probabilities and weigh gradients
        by importance."""
        ...

    def generate(
        self, model: nn.Module | Mixture, prompts: Sequence[Tensor], *, seeds: Sequence[int], stop: Stop
    ) -> list[Completion]:
        """One completion per prompt, in order, sampled with the settings of `sampling`.

        `prompts` are int64 [L]; repeat a prompt to get a group. `seeds` has one for each row (`ops.derive_seed`): a
        completion depends on its prompt, its seed and the weights, never on its neighbours. A completion
        includes its end token or stop text; `stop.limits` truncate rows below `max_new_tokens`.
        """
        ...


@runtime_checkable
class Reserving(Protocol):
    """An engine that allocates memory for the longest row before the first one."""

    def reserve(self, row_tokens: int) -> None:
        """`row_tokens` is the number of tokens of the longest row: prompt, completion and observations."""
        ...


Overlap = Annotated[int, Interval(ge=0, le=1)]
"""Updates that sampling is ahead of learning."""


class EngineLost(ConfigError):
    """The engine stopped, or lost its weights, while it sampled."""


class KeptEngine(Engine, Protocol):
    """Samples in another thread from the weights that were kept, and ignores its `model`."""

    def release(self) -> None:
        """Ends it. Until then the other methods of the engine wait, which would replace the weights."""
        ...


@runtime_checkable
class KeepsWeights(Protocol):
    """An engine that can keep a copy of the policy's weights, and sample from it while the policy changes."""

    def keep_weights(self, model: nn.Module, prompts: Sequence[Tensor]) -> KeptEngine | None:
        """Transfers the weights of `model`; None if this engine needs the trainer's thread. `prompts` are some that it
        will continue."""
        ...


def greedy(engine: Engine) -> Engine:
    """The same engine with greedy decoding."""
    return replace(engine, temperature=0.0)  # type: ignore[type-var]  # every engine is a dataclass of its settings
