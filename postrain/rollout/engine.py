"""The seam between methods that learn online and whatever samples for them.

An engine knows token ids, and texts only to stop at: no template, no reward. `local.py` samples from any Hugging Face
causal LM in this process, `vllm.py` through vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Protocol

from annotated_types import Interval
from torch import Tensor, nn

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
        """How it draws."""
        ...

    @property
    def exact(self) -> bool:
        """Whether the recorded log-probabilities are the policy's own, up to rounding in its type: nothing is cut off
        the distribution, and the weights are not rounded further. Otherwise methods
        score the completions again before they form a ratio."""
        ...

    def generate(
        self, model: nn.Module | Mixture, prompts: Sequence[Tensor], *, seeds: Sequence[int], stop: Stop
    ) -> list[Completion]:
        """One completion for each prompt, in order, drawn as `sampling` says.

        `prompts` are int64 [L]; repeat a prompt to get a group. `seeds` has one for each row (`ops.derive_seed`): a
        completion depends on its prompt, its seed and the weights, never on its neighbours. What ends a completion
        is part of it; `stop.limits` cut a row short of `max_new_tokens`.
        """
        ...


def greedy(engine: Engine) -> Engine:
    """The same engine, always taking the likeliest token."""
    return replace(engine, temperature=0.0)  # type: ignore[type-var]  # every engine is a dataclass of its settings
