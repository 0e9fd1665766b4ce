"""Stops a run that cannot go on: a loss or a gradient norm that is no number any more."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from postrain.callbacks.state import method_of
from postrain.folder import RunFolder
from postrain.types import ConfigError

WATCHED = ("loss", "policy_loss", "value_loss", "grad_norm")
SHOWN_ROWS = 8


class Guards(Callback):
    """Stands after MetricsFile, so that the bad record can be read, and before the checkpoint, which keeps it out."""

    def __init__(self, folder: RunFolder) -> None:
        self._checkpoints = folder.checkpoints

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        method = method_of(pl_module)
        bad = not_finite(method.latest)
        if bad:
            rows = getattr(method, "current_rows", ())
            raise ConfigError(stop_line(method.counters.updates, bad, rows, newest(self._checkpoints)))


def not_finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """The watched metrics that are nan or infinite."""
    return {name: metrics[name] for name in WATCHED if name in metrics and not math.isfinite(metrics[name])}


def stop_line(update: int, bad: Mapping[str, float], rows: Sequence[int], checkpoint: Path | None) -> str:
    """The one line that says what happened, where, and how to go on."""
    what = ", ".join(f"{name} is {value}" for name, value in bad.items())
    shown = ", ".join(str(row) for row in rows[:SHOWN_ROWS]) + (", ..." if len(rows) > SHOWN_ROWS else "")
    where = f"update {update}" + (f", data rows {shown}" if rows else "")
    saved = f"the last good checkpoint is {checkpoint}" if checkpoint else "no checkpoint had been written yet"
    return f"{what} at {where}; {saved}; lower method.learning_rate or method.max_grad_norm and look at these rows"


def newest(checkpoints: Path) -> Path | None:
    """The checkpoint written last; None when there is none."""
    found = [path for path in checkpoints.glob("*.ckpt") if path.is_file()] if checkpoints.is_dir() else []
    return max(found, key=lambda path: path.stat().st_mtime, default=None)
