"""checkpoints/: the newest resumable states of a run, each complete or absent.

A file is written under another name and renamed, so that a kill or a full disk leaves the one before untouched.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from postrain.callbacks.metrics import NO_SPACE
from postrain.callbacks.state import method_of
from postrain.folder import RunFolder, writing
from postrain.types import ConfigError


class Checkpoints(Callback):
    """Saves every `every` updates, after the last one, when the run is told to stop, and when a reward or a judge fails
    in the middle of a run. Must be the last callback: what it saves is then on record everywhere else."""

    def __init__(self, folder: RunFolder, *, every: int, keep: int) -> None:
        self.directory, self.every, self.keep = folder.checkpoints, every, keep
        self.begun: tuple[int, int] | None = None
        """Updates and optimizer steps when the present update began."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        counters = method_of(pl_module).counters
        self.begun = (counters.updates, counters.optimizer_steps)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Where an update failed before it changed anything, what was learned until then is whole: it is saved.

        Only on a single rank: others may not have failed.
        """
        counters = method_of(pl_module).counters
        untouched = self.begun == (counters.updates, counters.optimizer_steps)
        if isinstance(exception, ConfigError) and untouched and counters.updates and trainer.world_size == 1:
            self.save(trainer, counters.updates)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        method = method_of(pl_module)
        update = method.counters.updates
        if update % self.every == 0 or update == method.updates or trainer.should_stop:
            self.save(trainer, update)

    def save(self, trainer: Trainer, update: int) -> None:
        """Writes the state after `update` and forgets the oldest beyond `keep`."""
        path = self.directory / f"update={update:06d}.ckpt"
        unfinished = path.with_suffix(".unfinished")
        with writing(path, f"the last good one is {newest_name(self.directory)}; {NO_SPACE}"):
            try:
                trainer.save_checkpoint(unfinished)
            except RuntimeError as error:  # what torch's zip writer raises when the disk is full
                unfinished.unlink(missing_ok=True)
                raise OSError(f"PyTorch could not write it ({str(error).splitlines()[0]})") from error
            if trainer.is_global_zero:
                os.replace(unfinished, path)
                for old in checkpoints(self.directory)[: -self.keep]:
                    old.unlink()
        trainer.strategy.barrier("checkpoint")


def checkpoints(directory: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(directory.glob("update=*.ckpt"))


def newest_name(directory: Path) -> str:
    """The newest checkpoint's path, or a word that there is none."""
    found = checkpoints(directory)
    return str(found[-1]) if found else "missing: none was written yet"


def newest_readable(directory: Path) -> tuple[Path | None, list[Path]]:
    """The newest checkpoint that can be read, None when there is none at all, and the damaged ones passed over.

    Raises ConfigError when there are checkpoints and every one is damaged.
    """
    damaged: list[Path] = []
    for path in reversed(checkpoints(directory)):
        try:
            torch.load(path, map_location="meta", weights_only=True, mmap=True)
        except (RuntimeError, OSError, EOFError, pickle.UnpicklingError):
            damaged.append(path)
        else:
            return path, damaged
    if damaged:
        raise ConfigError(f"resume: {damaged[0]} is damaged (truncated?), and so is every other one; start a new run")
    return None, damaged
