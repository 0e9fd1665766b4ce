"""Writes checkpoints straight to their file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO


class FileCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint format without its buffer, which holds the whole file in memory: 12 bytes per parameter.

    The caller writes to a temporary name and renames (training/checkpoints.py).
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes the file; creates its folder."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, path)
