"""metrics.jsonl: one record an update, append-only, and a copy of it to the trackers.

Must stand before the checkpoint callback, and after everything that adds to `method.latest` (evaluation, throughput): a
checkpoint of update k then always finds record k on disk.
"""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from postrain.runs.folder import RunFolder, writing
from postrain.runs.lightning_state import MethodLike, method_of
from postrain.training.loggers import forget_after

NO_SPACE = "free some space and go on with resume=RUN_FOLDER"


class MetricsFile(Callback):
    """Writes {"update", "time", "optimizer_steps", "episodes", "tokens", metrics...} after every update."""

    def __init__(self, folder: RunFolder) -> None:
        self.lines = folder.metrics

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        method = method_of(pl_module)
        method.logs_to_trackers = False
        updates = method.counters.updates
        if trainer.is_global_zero:
            with writing(self.lines.path, NO_SPACE):
                self.lines.rewind(updates or -1)
            if updates > 0:
                forget_after(trainer.loggers, updates)
        if updates == 0 and method.latest:
            self.write(trainer, method)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.write(trainer, method_of(pl_module))

    def write(self, trainer: Trainer, method: MethodLike) -> None:
        """Add a record with what the method last measured."""
        if not trainer.is_global_zero:
            return
        counters = method.counters
        record = {
            "update": counters.updates,
            "time": round(time.time(), 3),
            "optimizer_steps": counters.optimizer_steps,
            "episodes": counters.episodes,
            "tokens": counters.tokens,
            **method.latest,
        }
        with writing(self.lines.path, NO_SPACE):
            self.lines.append(record)
        for logger in trainer.loggers:
            logger.log_metrics(method.latest, step=counters.updates)
