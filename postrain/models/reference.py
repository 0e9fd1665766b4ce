"""The reference model of a policy: the policy with its adapter disabled, a frozen model, or one loaded while it scores.

It is not a submodule, so optimizer, checkpoints and DDP do not see its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import nn

from postrain.models.parts import frozen_copy
from postrain.models.saved_adapter import REFERENCE


class Reference:
    """The reference policy. A plain object, so that a module with this attribute does not own the weights."""

    def __init__(
        self,
        policy: Any,
        frozen: nn.Module | None = None,
        *,
        load: Callable[[], nn.Module] | None = None,
        description: str = "",
    ) -> None:
        """`load` gives the frozen model for the time of a `scoring` block; without both, the adapter is disabled."""
        self._policy = policy
        self._frozen = frozen
        self._load = load
        self.description = description or (
            "reference: the policy with its initial adapter"
            if frozen is None and has_reference_adapter(policy)
            else "reference: the policy with its adapter disabled"
            if frozen is None
            else "reference: a frozen copy of the initial policy"
        )
        """One line for the console."""

    @classmethod
    def for_policy(cls, policy: nn.Module, frozen: nn.Module | None = None) -> Self:
        """`frozen` if given; else the policy with its adapter disabled; else a frozen copy of the current policy."""
        adapted = hasattr(policy, "disable_adapter")
        return cls(policy, frozen if frozen is not None or adapted else frozen_copy(policy))

    def convert(self, change: Callable[[nn.Module], object]) -> None:
        """Changes the frozen model in place, if there is one, now or when it is loaded: precision, sharding."""
        if self._frozen is not None:
            change(self._frozen)
        if (load := self._load) is not None:
            self._load = lambda: changed(load(), change)

    @property
    def frozen(self) -> nn.Module | None:
        """The frozen model, if it is in memory."""
        return self._frozen

    @property
    def is_rounded(self) -> bool:
        """Whether a frozen model has a lower precision than the policy."""
        if self._frozen is None:
            return False
        mine, theirs = (next(model.parameters()).dtype.itemsize for model in (self._frozen, self._policy))
        return mine < theirs

    @contextmanager
    def scoring(self) -> Iterator[nn.Module]:
        """The reference model in eval mode, without gradients; restores the policy's state afterwards.

        Inside the block the adapter of the policy is disabled, so the policy cannot be scored there: see `resident`.
        """
        with torch.no_grad(), self.resident() as frozen:
            if frozen is None:
                with in_eval_mode(self._policy), adapter_disabled(self._policy):
                    yield self._policy
            else:
                # Lightning moves only the policy, since no module owns the reference. `to` would free gathered weights.
                device = next(self._policy.parameters()).device
                with in_eval_mode(frozen):
                    yield frozen if next(frozen.parameters()).device == device else frozen.to(device)

    @contextmanager
    def resident(self) -> Iterator[nn.Module | None]:
        """Keeps a model that is loaded until the outermost block ends: a loop over batches belongs in one block.

        Gives the frozen model; None if the reference is the policy with its adapter disabled.
        """
        if self._frozen is not None or self._load is None:
            yield self._frozen
            return
        self._frozen = self._load().eval().requires_grad_(False)
        try:
            yield self._frozen
        finally:
            self._frozen = None


def changed(model: nn.Module, change: Callable[[nn.Module], object]) -> nn.Module:
    """The model after `change`."""
    change(model)
    return model


@contextmanager
def adapter_disabled(model: Any) -> Iterator[None]:
    """Replaces the adapter by the reference adapter inside the block, or disables it if there is none.

    PEFT's own context also toggles `requires_grad`, and restores it for the wrong parameters when they are sharded.
    """
    name, value = ("_active_adapter", [REFERENCE]) if has_reference_adapter(model) else ("_disable_adapters", True)
    with set_in_layers(model, name, value):
        yield


@contextmanager
def set_in_layers(model: nn.Module, name: str, value: Any) -> Iterator[None]:
    """Sets an attribute of every adapted layer inside the block."""
    layers: list[Any] = [module for module in model.modules() if hasattr(module, name)]
    before = [getattr(layer, name) for layer in layers]
    for layer in layers:
        setattr(layer, name, value)
    try:
        yield
    finally:
        for layer, earlier in zip(layers, before, strict=True):
            setattr(layer, name, earlier)


def has_reference_adapter(model: Any) -> bool:
    """Whether the policy has a frozen copy of its initial adapter."""
    return REFERENCE in getattr(model, "peft_config", {})


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; restores each submodule's mode afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
