"""The seam between methods that learn online and whatever samples for them.

An engine knows token ids only: no text, no template, no reward. `postrain.rollout.local` samples from any Hugging Face
causal LM in this process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from postrain.types import Completion, Sampling


class Engine(Protocol):
    """Continues prompts."""

    @property
    def sampling(self) -> Sampling:
        """How it draws."""
        ...

    def generate(
        self, model: nn.Module, prompts: Sequence[Tensor], *, keys: Sequence[int], stop_ids: Sequence[int]
    ) -> list[Completion]:
        """One completion for each prompt, in order, drawn as `sampling` says.

        `prompts` are int64 [L]; repeat a prompt to get a group. `keys` are one seed a row (`ops.derive_seed`): a
        completion depends on its prompt, its key and the weights, never on its neighbours. A completion ends with the
        first token of `stop_ids`, which it includes.
        """
        ...
