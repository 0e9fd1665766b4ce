"""Writes metrics.jsonl (a record per update), samples.jsonl (completions of evaluations) and held_out.jsonl (metrics of
single held-out rows and completions), the first two with a copy to trackers.

The callbacks must precede the checkpoint callback, and MetricsFile must follow every callback that adds to
`method.last_metrics` (evaluation, throughput). Record k is then on disk before the checkpoint of update k.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from postrain.jsonl import JsonLines
from postrain.runs.folder import RunFolder, writing
from postrain.runs.method_protocol import MethodLike, method_of
from postrain.training.logger_media import log_table
from postrain.training.loggers import discard_after
from postrain.types import PerRow

DISK_FULL_REMEDY = "free some space and continue with resume=RUN_FOLDER"


class MetricsFile(Callback):
    """Writes {"update", "time", "optimizer_steps", "episodes", "tokens", metrics...} after every update."""

    def __init__(self, folder: RunFolder) -> None:
        self.file = folder.metrics

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        method = method_of(pl_module)
        method.logs_to_trackers = False
        updates = method.counters.updates
        if trainer.is_global_zero:
            resumed = self.file.path.exists()
            with writing(self.file.path, DISK_FULL_REMEDY):
                self.file.rewind(updates or -1)
            if resumed:
                discard_after(trainer.loggers, updates)
        if updates == 0 and method.last_metrics:
            self.write(trainer, method)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.write(trainer, method_of(pl_module))

    def write(self, trainer: Trainer, method: MethodLike) -> None:
        """Appends a record with the method's last metrics."""
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
        with writing(self.file.path, DISK_FULL_REMEDY):
            self.file.append(record)
        for logger in trainer.loggers:
            logger.log_metrics(method.last_metrics, step=counters.updates)


@dataclass(frozen=True)
class Sample:
    """One completion of an evaluation."""

    row: int
    """Row number of the prompt in its source; samples with the same row have the same prompt."""
    prompt: str
    completion: str
    rewards: Mapping[str, float | None]
    """Reward components by name, and their total; empty for methods without a reward."""
    gold: Mapping[str, float | None]
    """Gold scores by name, from checks the policy is not trained on; empty where there are none."""


class EvaluationFile(Callback):
    """A file of records of evaluations; must precede the Evaluator, which creates them."""

    file: JsonLines

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            with writing(self.file.path, DISK_FULL_REMEDY):
                self.file.rewind(method_of(pl_module).counters.updates or -1)

    def append(self, trainer: Trainer, update: int, records: Iterable[Mapping[str, Any]]) -> None:
        """Appends the records of one evaluation; does nothing on other ranks than the first."""
        if trainer.is_global_zero and (whole := [{"update": update, **record} for record in records]):
            with writing(self.file.path, DISK_FULL_REMEDY):
                self.file.append(*whole)


class SamplesFile(EvaluationFile):
    """Writes samples, with a copy to trackers."""

    def __init__(self, folder: RunFolder) -> None:
        self.file = folder.samples

    def write(self, trainer: Trainer, update: int, samples: Sequence[Sample]) -> None:
        """Appends the samples of one evaluation."""
        self.append(trainer, update, map(asdict, samples))
        if trainer.is_global_zero and samples:
            log_table(trainer.loggers, "samples", *table(update, samples), update)


class HeldOutFile(EvaluationFile):
    """Writes losses and accuracies of single held-out rows, and rewards, gold scores and lengths of completions, which
    intervals of their changes need: {"update", "metric", "totals", "counts"} with a number for each row in the order of
    the data."""

    def __init__(self, folder: RunFolder) -> None:
        self.file = folder.held_out

    def write(self, trainer: Trainer, update: int, rows: Mapping[str, PerRow]) -> None:
        """Appends the rows of one evaluation."""
        records = (
            {"metric": name, "totals": rounded(total_B), "counts": rounded(count_B)}
            for name, (total_B, count_B) in rows.items()
        )
        self.append(trainer, update, records)


def rounded(values: Tensor) -> list[float]:
    """The values with seven significant digits, the precision of float32."""
    return [float(f"{value:.7g}") for value in values.tolist()]


def table(update: int, samples: Sequence[Sample]) -> tuple[list[str], list[list[Any]]]:
    """The samples as columns and rows; a missing reward component is None."""
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
