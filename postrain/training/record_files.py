"""metrics.jsonl, a record an update, and samples.jsonl, the completions of an evaluation; trackers get a copy of both.

Both callbacks stand before the checkpoint callback, and MetricsFile after everything that adds to `method.last_metrics`
(evaluation, throughput): a checkpoint of update k then always finds record k on disk.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from postrain.runs.folder import RunFolder, writing
from postrain.runs.method_protocol import MethodLike, method_of
from postrain.training.logger_media import log_table
from postrain.training.loggers import discard_after

DISK_FULL_REMEDY = "free some space and go on with resume=RUN_FOLDER"


class MetricsFile(Callback):
    """Writes {"update", "time", "optimizer_steps", "episodes", "tokens", metrics...} after every update."""

    def __init__(self, folder: RunFolder) -> None:
        self.lines = folder.metrics

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        method = method_of(pl_module)
        method.logs_to_trackers = False
        updates = method.counters.updates
        if trainer.is_global_zero:
            with writing(self.lines.path, DISK_FULL_REMEDY):
                self.lines.rewind(updates or -1)
            if updates > 0:
                discard_after(trainer.loggers, updates)
        if updates == 0 and method.last_metrics:
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
            **method.last_metrics,
        }
        with writing(self.lines.path, DISK_FULL_REMEDY):
            self.lines.append(record)
        for logger in trainer.loggers:
            logger.log_metrics(method.last_metrics, step=counters.updates)


@dataclass(frozen=True)
class Sample:
    """One completion to look at."""

    row: int
    """Number of the prompt in its source: samples of different updates with the same row answer the same prompt."""
    prompt: str
    completion: str
    rewards: Mapping[str, float | None]
    """What the policy is paid for, by part; empty for methods without a reward."""
    gold: Mapping[str, float | None]
    """What the world knows to be good, by part; empty where nobody knows."""


class SamplesFile(Callback):
    """Writes samples; stands before the callback that makes them."""

    def __init__(self, folder: RunFolder) -> None:
        self.lines = folder.samples

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            with writing(self.lines.path, DISK_FULL_REMEDY):
                self.lines.rewind(method_of(pl_module).counters.updates or -1)

    def write(self, trainer: Trainer, update: int, samples: Sequence[Sample]) -> None:
        """Keep the samples of one evaluation; on ranks other than the first nothing happens."""
        if not trainer.is_global_zero or not samples:
            return
        with writing(self.lines.path, DISK_FULL_REMEDY):
            self.lines.append(*({"update": update, **asdict(sample)} for sample in samples))
        columns, rows = table(update, samples)
        log_table(trainer.loggers, "samples", columns, rows, update)


def table(update: int, samples: Sequence[Sample]) -> tuple[list[str], list[list[Any]]]:
    """The samples as columns and rows; a part that a sample lacks is None."""
    rewards = list(dict.fromkeys(name for sample in samples for name in sample.rewards))
    gold = list(dict.fromkeys(name for sample in samples for name in sample.gold))
    columns = ["update", "row", "prompt", "completion"]
    columns += [f"reward/{name}" for name in rewards] + [f"gold/{name}" for name in gold]
    rows = [
        [update, sample.row, sample.prompt, sample.completion]
        + [sample.rewards.get(name) for name in rewards]
        + [sample.gold.get(name) for name in gold]
        for sample in samples
    ]
    return columns, rows
