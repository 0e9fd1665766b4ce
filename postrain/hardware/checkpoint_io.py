"""Reads and writes checkpoints, straight from and to their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from postrain.hardware.sharded_checkpoint import SHARDED, whole


class FileCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint format without its buffer, which holds the whole file in memory: 12 bytes per parameter.

    The caller writes to a temporary name and renames (training/checkpoints.py).
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes the file; creates its folder."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, path)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """The checkpoint, also of a sharded run; whole tensors are mapped, so ranks of a node share their memory."""
        found = torch.load(path, mmap=True, map_location="cpu", weights_only=weights_only)
        return whole(found, Path(path)) if found.get(SHARDED) else found
