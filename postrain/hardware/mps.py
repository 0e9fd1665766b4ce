"""Apple GPUs (PyTorch's device `mps`): whether this machine has one, and which precisions it supports."""

from __future__ import annotations

import torch

BF16_MACOS = (14, 0)
"""The first version of macOS with bfloat16 on the GPU."""


def missing_reason() -> str | None:
    """Why PyTorch has no Apple GPU here; None if it has one."""
    if torch.backends.mps.is_available():
        return None
    if not torch.backends.mps.is_built():
        return "this PyTorch is built without MPS"
    return "no Apple GPU, or a version of macOS that this PyTorch does not support"


def supports_bf16() -> bool:
    """Whether this version of macOS computes in bfloat16 on the GPU."""
    return torch.backends.mps.is_macos_or_newer(*BF16_MACOS)


def free_memory() -> int:
    """Bytes that this process can still allocate on the GPU before the system slows it down."""
    return max(0, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
