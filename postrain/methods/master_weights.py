"""Float32 master weights for an optimizer of bfloat16 parameters (Micikevicius et al. 2018, section 3.1).

A bfloat16 number has 8 significant bits, so w + d rounds to w for every |d| < 2⁻⁹ |w|: AdamW at a learning rate of 1e-6
moves no weight above 1e-3. Its second moment has the same problem, since β₂ = 0.999 changes it by less than that per
step. With master weights, the optimizer updates float32 copies and keeps float32 state, and the model gets the copies
rounded to bfloat16. With AdamW this costs 12 bytes per parameter (copy, two moments) instead of 4.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from postrain.hardware.sharding import local_shard

MASTER = "master"
"""The key of a parameter's float32 copy in the optimizer's state."""


class MasterWeights(torch.optim.Optimizer):
    """An optimizer whose `inner` optimizer updates float32 copies of the 16-bit parameters, and all others directly.

    `make(groups)` constructs `inner`. `param_groups` has the model's parameters and `state` their inner state with the
    copies, so that checkpoints, device moves and shards need no special case; between steps `inner` has neither.
    Gradients accumulate in float32 where PyTorch has `Tensor.grad_dtype`, except in sharded runs.
    """

    def __init__(self, make: Callable[..., torch.optim.Optimizer], groups: list[dict[str, Any]]) -> None:
        copies = {p: p.detach().float() for group in groups for p in group["params"] if is_low_precision(p)}
        # Some optimizers create their state at once, so it has to be that of the copies.
        self.inner = make(_with_copies(groups, copies))
        super().__init__([{**group} for group in groups], self.inner.defaults)
        self._take_back(copies, [p for p in self._parameters() if copies.get(p, p) in self.inner.state])
        # PyTorch's loader of sharded optimizer state assigns gradients of the parameters' dtype.
        sharded = any(isinstance(p, DTensor) for p in copies)
        for parameter in () if sharded or not hasattr(torch.Tensor, "grad_dtype") else copies:
            parameter.grad, parameter.grad_dtype = None, torch.float32

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step of `inner`; the parameters get the copies, rounded."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        updated = [p for p in self._parameters() if p.grad is not None]
        copies = {p: self._copy_of(p) for p in updated if is_low_precision(p)}
        for parameter, copy in copies.items():
            copy.grad = None if parameter.grad is None else parameter.grad.float()
        self._lend(copies)
        self.inner.step()
        for parameter, copy in copies.items():
            copy.grad = None
            parameter.copy_(copy)
        self._take_back(copies, updated)
        return loss

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Restores state and copies; a parameter without a saved copy keeps its weights as they are."""
        keys = [key for group in state_dict["param_groups"] for key in group["params"]]
        saved: dict[Tensor, dict[str, Any]] = {
            p: state_dict["state"][key]
            for p, key in zip(self._parameters(), keys, strict=False)
            if key in state_dict["state"]
        }
        copies = {
            p: saved.get(p, {}).get(MASTER, p.detach()).to(p.device, torch.float32)
            for p in self._parameters()
            if is_low_precision(p)
        }
        self._lend(copies)
        # Optimizers cast loaded state to the dtype of their parameters, here the float32 of the copies.
        inner_state = {key: _without_copy(values) for key, values in state_dict["state"].items()}
        self.inner.load_state_dict({**state_dict, "state": inner_state})
        self._take_back(copies, saved)

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _copy_of(self, parameter: Tensor) -> Tensor:
        """The float32 copy; elements whose parameter was changed by other code follow it."""
        copy = self.state[parameter].get(MASTER)
        if copy is None:
            return parameter.detach().float()
        mine, theirs = local_shard(copy), local_shard(parameter)
        rounded = mine.to(theirs.dtype)
        if not torch.equal(rounded, theirs):
            mine.copy_(torch.where(rounded == theirs, mine, theirs.float()))
        return copy

    def _lend(self, copies: Mapping[Tensor, Tensor]) -> None:
        """Gives `inner` the groups and the state, with the copies in place of their parameters."""
        self.inner.param_groups = _with_copies(self.param_groups, copies)
        lent = {copies.get(p, p): _without_copy(values) for p, values in self.state.items()}
        self.inner.state = defaultdict(dict, lent)

    def _take_back(self, copies: Mapping[Tensor, Tensor], updated: Iterable[Tensor]) -> None:
        """Takes the settings of the groups and the state of `updated` parameters from `inner`."""
        for mine, theirs in zip(self.param_groups, self.inner.param_groups, strict=True):
            mine.update({name: value for name, value in theirs.items() if name != "params"})
        for parameter in updated:
            copy = copies.get(parameter)
            own = {} if copy is None else {MASTER: copy}
            self.state[parameter] = {**self.inner.state[parameter if copy is None else copy], **own}
        self.inner.param_groups, self.inner.state = [], defaultdict(dict)


def is_low_precision(parameter: Tensor) -> bool:
    """Whether a parameter has too few bits for small steps."""
    return parameter.dtype in (torch.bfloat16, torch.float16)


def _with_copies(groups: list[dict[str, Any]], copies: Mapping[Tensor, Tensor]) -> list[dict[str, Any]]:
    return [{**group, "params": [copies.get(p, p) for p in group["params"]]} for group in groups]


def _without_copy(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if name != MASTER}
