"""checkpoints/: the newest resumable states of a run, each complete or absent.

A checkpoint is written under a temporary name, read back and renamed, so a kill, a full disk or a broken model leaves
earlier checkpoints intact. The file is a zip archive with checksums, so reading detects any damage.
"""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from postrain.errors import ConfigError
from postrain.hardware.collectives import gather
from postrain.hardware.optimizer_state import IN_BACKGROUND, ShardedStrategy
from postrain.hardware.sharded_checkpoint import SHARDED, are_intact, checksums_match
from postrain.runs.folder import RunFolder
from postrain.runs.method_protocol import CountersLike, method_of
from postrain.runs.status import SHARDS, checkpoints, remove_checkpoint, space_remedy, writing
from postrain.training.nan_guard import NaNGuard


class Checkpoints(Callback):
    """Saves every `every` updates, after the last update, when the run is stopped, and when a reward or judge fails.

    Must be the last callback, so that the records of an update are written before its checkpoint. Lightning's
    ModelCheckpoint can leave a half-written file and does not verify what it wrote.
    """

    def __init__(self, folder: RunFolder, guard: NaNGuard, *, every: int, keep: int) -> None:
        self.folder, self.guard, self.every, self.keep = folder, guard, every, keep
        self.before_update: CountersLike | None = None
        """Counters before the current update."""
        self.saved: int | None = None
        """The update of the newest checkpoint of this session."""
        self.unpublished: Path | None = None
        """The path of a checkpoint that is written in the background."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.before_update = copy(method_of(pl_module).counters)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Saves the state before an update that failed before it changed anything.

        Only in single-process runs: with several ranks, the others may not have failed.
        """
        counters = method_of(pl_module).counters
        whole = self.before_update == counters and trainer.world_size == 1 and not self.guard.problems(pl_module)
        if isinstance(exception, ConfigError) and whole and counters.updates not in (0, self.saved):
            self.save(trainer, counters.updates)
        if trainer.world_size == 1:
            self.complete(trainer, wait=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        method = method_of(pl_module)
        update = method.counters.updates
        self.complete(trainer, wait=False)
        if update % self.every == 0 or update == method.updates or trainer.should_stop:
            self.guard.check(pl_module)
            self.save(trainer, update)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.complete(trainer, wait=True)

    def save(self, trainer: Trainer, update: int) -> None:
        """Writes the state after `update` and deletes all but the newest `keep` checkpoints.

        A sharded run writes in the background: `complete` does the rest.
        """
        self.complete(trainer, wait=True)
        self.saved, path = update, self.folder.checkpoints / f"update={update:06d}.ckpt"
        if not isinstance(trainer.strategy, ShardedStrategy):
            with self.publishing(trainer, path) as unfinished:
                trainer.save_checkpoint(unfinished)
                if trainer.is_global_zero and not checksums_match(unfinished):
                    raise OSError("the file could not be read back")
        else:
            with self.removing_failed(trainer, path) as unfinished:
                if trainer.is_global_zero:
                    remove_checkpoint(path)  # a damaged one
                trainer.save_checkpoint(unfinished, storage_options=IN_BACKGROUND)
            self.unpublished = path

    def complete(self, trainer: Trainer, *, wait: bool) -> None:
        """Publishes the checkpoint that is written in the background, if all ranks have written it."""
        saving, path = getattr(trainer.strategy, "saving", None), self.unpublished
        if saving is None or path is None or not (wait or all(gather(saving.is_written()))):
            return
        trainer.strategy.saving = self.unpublished = None  # pyright: ignore[reportAttributeAccessIssue]
        with self.publishing(trainer, path) as unfinished:
            saving.finish()
            if trainer.is_global_zero and not checksums_match(unfinished):
                raise OSError("the file could not be read back")

    @contextmanager
    def publishing(self, trainer: Trainer, path: Path) -> Iterator[Path]:
        """Gives the temporary name, to which the block writes, and then renames it and deletes old checkpoints."""
        with self.removing_failed(trainer, path) as unfinished:
            yield unfinished
            if trainer.is_global_zero:
                os.replace(unfinished, path)
                for old in checkpoints(self.folder.path)[: -self.keep]:
                    remove_checkpoint(old)
        trainer.strategy.barrier("checkpoint")

    @contextmanager
    def removing_failed(self, trainer: Trainer, path: Path) -> Iterator[Path]:
        """Gives the temporary name of a checkpoint, and removes what a failed block wrote there."""
        unfinished = path.with_suffix(".unfinished")
        try:
            with writing(path, space_remedy(self.folder.path)):
                try:
                    yield unfinished
                except RuntimeError as error:  # raised by torch's zip writer on a full disk
                    raise OSError(f"PyTorch could not write it ({str(error).splitlines()[0]})") from error
        except BaseException:
            if trainer.is_global_zero:
                remove_checkpoint(unfinished)
            raise


def is_whole(path: Path) -> bool:
    """Whether a file is a checkpoint that can be loaded, and all CRC-32 checksums match, also of its shards."""
    if not checksums_match(path):
        return False
    try:
        found = torch.load(path, map_location="meta", weights_only=True, mmap=True)
        return not found.get(SHARDED) or are_intact(path.with_suffix(SHARDS))
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError, ValueError, LookupError):
        return False


def set_aside(path: Path) -> Path:
    """Renames a damaged checkpoint, so that it is not counted among those to keep; returns its new path."""
    renamed = path.with_name(f"{path.name}.damaged")
    with writing(path):
        os.replace(path, renamed)
        if (shards := path.with_suffix(SHARDS)).is_dir():
            shutil.rmtree(there := shards.with_name(f"{shards.name}.damaged"), ignore_errors=True)
            os.replace(shards, there)
    return renamed


def newest_readable(folder: Path) -> tuple[Path | None, list[Path]]:
    """The newest readable checkpoint of a run folder (None without checkpoints) and the damaged ones that were skipped.

    Raises ConfigError if there are checkpoints and all are damaged.
    """
    damaged: list[Path] = []
    for path in reversed(checkpoints(folder)):
        if is_whole(path):
            return path, damaged
        damaged.append(path)
    if damaged:
        raise ConfigError(f"resume: {damaged[0]} and all other checkpoints are damaged; start a new run")
    return None, damaged
