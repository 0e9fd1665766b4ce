"""What a policy is compared with: the weights it started from, kept where neither optimizer, checkpoint nor DDP see
them. With an adapter they are the policy's own, with the adapter off; otherwise a frozen model beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import nn

from postrain.models.parts import frozen_copy


class Reference:
    """The start of a policy. A plain object, so that a module which holds it does not own its weights."""

    def __init__(self, policy: Any, frozen: nn.Module | None, *, description: str = "") -> None:
        self._policy = policy
        self._frozen = frozen
        self.description = description or (
            "reference: the policy's own weights with the adapter off"
            if frozen is None
            else "reference: a frozen copy of the weights the policy starts from"
        )
        """Which weights these are, for a person."""

    @classmethod
    def for_policy(cls, policy: nn.Module, frozen: nn.Module | None = None) -> Self:
        """`frozen` if there is one, else the policy without its adapter, else a copy of the policy as it is now."""
        adapted = hasattr(policy, "disable_adapter")
        return cls(policy, frozen if frozen is not None or adapted else frozen_copy(policy))

    @contextmanager
    def scoring(self) -> Iterator[nn.Module]:
        """The reference model in eval mode, without gradients; afterwards the policy is as it was."""
        with torch.no_grad():
            if self._frozen is None:
                with in_eval_mode(self._policy), adapter_disabled(self._policy):
                    yield self._policy
            else:
                # Lightning moves the policy to its device; nobody else moves what no module owns.
                yield self._frozen.to(next(self._policy.parameters()).device)


@contextmanager
def adapter_disabled(model: nn.Module) -> Iterator[None]:
    """The adapter's layers give what they wrap. PEFT's own switch also takes `requires_grad` away and gives it back, to
    other parameters than it took it from where they are sharded."""
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "_disable_adapters")]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; then each part's own mode again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
