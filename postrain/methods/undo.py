"""Updates that are undone bit for bit, for trials before training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from postrain.hardware.sharding import sharded_parameters
from postrain.models.reference import Reference

if TYPE_CHECKING:
    from postrain.methods.base import Method


class InitialWeights(Reference):
    """The policy with the weights that it had before the trial; both share one module."""

    def __init__(self, method: Method, values: Mapping[str, Tensor]) -> None:
        super().__init__(method.policy, None, description="")
        self.method, self.values = method, values

    @contextmanager
    def scoring(self) -> Iterator[torch.nn.Module]:
        exchange_weights(self.method, self.values)
        try:
            with torch.no_grad():
                yield self._policy
        finally:
            exchange_weights(self.method, self.values)


def trained_weights(method: Method) -> dict[str, Tensor]:
    """Copies of the trained weights, of this rank's shards if they are sharded."""
    weights = {name: each for name, each in sharded_parameters(method).items() if each.requires_grad}
    return {name: each.detach().clone() for name, each in weights.items()}


@torch.no_grad()
def exchange_weights(method: Method, values: Mapping[str, Tensor]) -> None:
    """Exchanges the trained weights and `values`."""
    parameters = sharded_parameters(method)
    for name, value in values.items():
        current = parameters[name].detach().clone()
        parameters[name].copy_(value)
        value.copy_(current)


@contextmanager
def unchanged(method: Method) -> Iterator[Reference]:
    """Restores weights, optimizer, counters, state, metrics and random numbers; yields the initial policy."""
    values, optimizer = trained_weights(method), cast("Any", method.optimizer)
    saved = {parameter: deepcopy(values) for parameter, values in optimizer.state.items()}
    counters, state, metrics = deepcopy(method.counters), deepcopy(method.state()), method.accumulated
    random, training = torch.get_rng_state(), method.policy.training
    method.accumulated = {}
    try:
        # Exchanging the weights of a sharded policy would gather them again for each piece of the vocabulary's logits.
        yield InitialWeights(method, values) if method.device_mesh is None else method.reference_policy
    finally:
        exchange_weights(method, values)
        for parameter in method.trainable_parameters():
            parameter.grad = None
        optimizer.state.clear()
        optimizer.state.update(saved)
        method.counters, method.accumulated = counters, metrics
        method.load_state(state)
        method.set_dropout(active=training)
        torch.set_rng_state(random)
