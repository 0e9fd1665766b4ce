"""What can be put on a trunk besides the language model's head, and copies of whole models."""

from __future__ import annotations

import copy
import hashlib
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from postrain.models.parts import upcast

Model = TypeVar("Model", bound=nn.Module)


class ValueHead(nn.Module):
    """A linear map from a hidden state to one number, 0 before it has learned anything."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.output = nn.Linear(width, 1)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, states: Tensor) -> Tensor:
        """[..., D] → [..., 1], in float32 at least, whatever the weights are kept in: returns do not fit bfloat16."""
        with torch.autocast(states.device.type, enabled=False):
            return linear(upcast(states), upcast(self.output.weight), upcast(self.output.bias))


def weights_digest(model: nn.Module) -> str:
    """A hash of the names, types and values of all parameters and buffers."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def frozen_copy(model: Model) -> Model:
    """The model as it is now, in eval mode, without gradients."""
    return copy.deepcopy(model).eval().requires_grad_(False)
