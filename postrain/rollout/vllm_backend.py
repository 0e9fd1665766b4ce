"""The interface of a running vLLM, in this process or on servers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from postrain.types import Completion


class Replica(Protocol):
    """A running vLLM with one copy of the weights, or several of them."""

    @property
    def where(self) -> str:
        """The config key that chose it, for messages."""
        ...

    def complete(self, prompts: Sequence[Tensor], settings: Sequence[Mapping[str, Any]]) -> list[Completion]:
        """One completion for each prompt, in order; `settings` are vLLM's sampling parameters by name."""
        ...


class Backend(Replica, Protocol):
    """vLLM in this process or on servers."""

    @property
    def replicas(self) -> Sequence[Replica]:
        """Each copy of the weights, all of which are checked."""
        ...

    def load(self, model: nn.Module) -> None:
        """Loads the weights of `model` and resets the prefix cache."""
        ...

    def has_weights(self) -> bool:
        """Whether it still has the weights of the last `load`."""
        ...

    def release(self) -> None:
        """Called after each rollout."""
        ...
