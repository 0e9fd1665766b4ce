"""Floating-point types by device: Apple GPUs have no float64."""

from __future__ import annotations

import torch
from torch import Tensor

WITHOUT_FLOAT64 = frozenset({"mps"})
"""Types of devices that cannot hold float64 tensors."""


def widest(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device without it."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


def widen(values: Tensor) -> Tensor:
    """The values in the widest type of their device."""
    return values.to(widest(values.device))
