"""checkpoints/: the newest resumable states of a run, each complete or absent.

A file is written under another name, read back and renamed, so that neither a kill nor a full disk nor a broken model
touches the ones before. It is a zip file, whose records carry checksums: damage of any kind is noticed on reading.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from postrain.runs.folder import RunFolder
from postrain.runs.method_protocol import method_of
from postrain.runs.status import checkpoints, space_remedy, writing
from postrain.training.nan_guard import NaNGuard
from postrain.types import ConfigError


class Checkpoints(Callback):
    """Saves every `every` updates, after the last one, when the run is stopped, and when a reward or a judge fails.

    Must be the last callback: the records of an update are then written before its checkpoint.

    Not Lightning's ModelCheckpoint, which can leave a half-written file and reads none back.
    """

    def __init__(self, folder: RunFolder, guard: NaNGuard, *, every: int, keep: int) -> None:
        self.folder, self.guard, self.every, self.keep = folder, guard, every, keep
        self.begun: tuple[int, int] | None = None
        """Updates and optimizer steps when the present update began."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        counters = method_of(pl_module).counters
        self.begun = (counters.updates, counters.optimizer_steps)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Saves the state before the update if the update failed before it changed anything.

        Only with a single rank: others may not have failed.
        """
        counters = method_of(pl_module).counters
        untouched = self.begun == (counters.updates, counters.optimizer_steps)
        whole = untouched and trainer.world_size == 1 and not self.guard.problems(pl_module)
        if isinstance(exception, ConfigError) and whole and counters.updates:
            self.save(trainer, counters.updates)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        method = method_of(pl_module)
        update = method.counters.updates
        if update % self.every == 0 or update == method.updates or trainer.should_stop:
            self.guard.check(pl_module)
            self.save(trainer, update)

    def save(self, trainer: Trainer, update: int) -> None:
        """Writes the state after `update` and forgets the oldest beyond `keep`."""
        path = self.folder.checkpoints / f"update={update:06d}.ckpt"
        unfinished = path.with_suffix(".unfinished")
        with writing(path, space_remedy(self.folder.path)):
            try:
                trainer.save_checkpoint(unfinished)
                if trainer.is_global_zero and not is_whole(unfinished):
                    raise OSError("what was read back is not what was written")
            except RuntimeError as error:  # what torch's zip writer raises when the disk is full
                raise OSError(f"PyTorch could not write it ({str(error).splitlines()[0]})") from error
            else:
                if trainer.is_global_zero:
                    os.replace(unfinished, path)
                    for old in checkpoints(self.folder.path)[: -self.keep]:
                        old.unlink()
            finally:
                if trainer.is_global_zero:
                    unfinished.unlink(missing_ok=True)
        trainer.strategy.barrier("checkpoint")


def is_whole(path: Path) -> bool:
    """Whether a checkpoint can be read and every record in it has its checksum (CRC-32, which torch.save writes and
    torch.load does not look at)."""
    try:
        with zipfile.ZipFile(path) as records:
            if records.testzip() is not None:
                return False
        torch.load(path, map_location="meta", weights_only=True, mmap=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile, ValueError, LookupError):
        return False
    return True


def newest_readable(folder: Path) -> tuple[Path | None, list[Path]]:
    """The newest checkpoint in a run folder that can be read, None when there is none at all, and the damaged ones
    passed over.

    Raises ConfigError when there are checkpoints and every one is damaged.
    """
    damaged: list[Path] = []
    for path in reversed(checkpoints(folder)):
        if is_whole(path):
            return path, damaged
        damaged.append(path)
    if damaged:
        raise ConfigError(f"resume: {damaged[0]} is damaged (truncated?), and so is every other one; start a new run")
    return None, damaged
