"""`fork=RUN@UPDATE`: a new run that shares the past of another one and continues with other settings.

The new folder gets the checkpoint of that update, the records up to it, and the start time, which chat templates with a
date use. From then on it is a run that resumes with changed settings. fork.json names its parent:
{"run", "update", "changes", "settings_since", "fingerprint"}. Update 0 shares the initial weights only.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from postrain.config.schema import TARGET
from postrain.config.tree import SESSION
from postrain.errors import ConfigError
from postrain.jsonl import atomic_write_text, number, read_json, update_of
from postrain.runs.folder import RunFolder, writing
from postrain.runs.resume import changed_config, checked_config, differing, saved_config, training_config
from postrain.runs.status import SHARDS, checkpoints

FORK = "fork"
FIXED = ("model", "adapter", f"method.{TARGET}", "method.critic")
"""Keys that decide which parameters a checkpoint has."""
ADAMW = "torch.optim.AdamW"
"""The class of the optimizer of a config with `optim: null`."""
ROWS_DEPEND_ON = (
    *("data", "seed", "environment", "rollout.max_new_tokens"),
    *("method.updates", "method.num_train_epochs", "method.batch_size", "method.dynamic_sampling"),
)
"""Keys that change which rows are encoded, and so the data fingerprint."""
NOT_LISTED = (FORK, "name", "paths", "report", "logger")
"""Keys whose changes do not change the training. Callbacks may: Lightning's average weights, or stop a run."""
RECORDS = ("metrics", "samples", "held_out", "diagnostics")


@dataclass(frozen=True)
class ForkPoint:
    """An update of an earlier run."""

    run: RunFolder
    update: int

    @classmethod
    def parse(cls, text: object) -> Self:
        """The value of `fork`. Raises ConfigError if there is no such run, or if it did not reach that update."""
        folder, _, update = str(text).rpartition("@")
        if not folder or not update.isdecimal():
            raise ConfigError(f"fork: expected RUN@UPDATE, such as runs/grpo/nano/TIME-HASH@120, got {text}")
        found = cls(RunFolder.open(folder, FORK), int(update))
        last = found.run.last_update
        if found.update > last:
            raise ConfigError(f"fork: {folder} has made {last} updates; give at most {folder}@{last}")
        return found

    def config(self, composed: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
        """The config of the fork: the run's own with the values that `composed` has for the overrides.

        Raises ConfigError for a change that the checkpoint does not fit.
        """
        saved = training_config(self.run, FORK)
        changed = changed_config(saved, composed, overrides)
        fixed = [line for line in differing(saved, changed) if _concerns(line, FIXED)]
        before, after = map(_optimizer, (saved, changed))
        if fixed := [*fixed, *([f"optim.{TARGET}: {before} → {after}"] if before != after else [])]:
            raise ConfigError(
                f"fork: {'; '.join(fixed)}: a checkpoint holds the weights and optimizer states of one model, adapter, "
                "method and optimizer; leave this out, or start a new run with model=run model.path=RUN"
            )
        return changed | {key: composed.get(key, default) for key, default in SESSION.items()}

    def changes(self, config: Mapping[str, Any]) -> list[str]:
        """One `key: old → new` for each setting of training in which the fork differs."""
        return [line for line in differing(checked_config(self.run), config) if not _concerns(line, NOT_LISTED)]

    def copy_past(self, source: RunFolder, folder: RunFolder, config: Mapping[str, Any]) -> None:
        """Gives a new folder the state after the update, which `source` has a checkpoint of, and writes fork.json.

        Checkpoints are linked where the file system allows it: no file of a checkpoint is ever changed.
        """
        with writing(folder.path):
            if self.update:
                copy_state(source, self.update, folder)
            began = self.run.status.first_started().isoformat(timespec="seconds")
            atomic_write_text(folder.status.path, json.dumps(folder.status.read() | {"began": began}) + "\n")
            changes = self.changes(config)
            record = {"run": str(self.run.path.resolve()), "update": self.update, "changes": changes}
            record["settings_since"] = self.update if changes else min(self.update, settings_since(self.run))
            if not any(_concerns(line, ROWS_DEPEND_ON) for line in changes):
                data = read_json(self.run.manifest).get("data")
                record["fingerprint"] = data.get("fingerprint") if isinstance(data, dict) else None
            text = json.dumps(record, indent=1, ensure_ascii=False, default=str)
            atomic_write_text(folder.fork, text + "\n")


def settings_since(run: RunFolder) -> int:
    """The update after which a run has had its present settings: that of its last change, or of its parents'."""
    fork = read_json(run.fork)
    # Folders of an earlier version record changes of the fork itself only.
    of_fork = fork.get("settings_since", fork.get("update") if fork.get("changes") else 0)
    return int(max([number(of_fork) or 0, *map(update_of, run.changes.read())]))


def record_changes(folder: RunFolder, config: Mapping[str, Any]) -> None:
    """Appends the settings of training that a resumed run changes to changes.jsonl, with its newest checkpoint."""
    changes = [line for line in differing(saved_config(folder), config) if not _concerns(line, NOT_LISTED)]
    if changes:
        newest = checkpoints(folder.path)[-1:]
        with writing(folder.path):
            folder.changes.append({"update": max(map(update_of_checkpoint, newest), default=0), "changes": changes})


def copy_state(source: RunFolder, update: int, folder: RunFolder) -> None:
    """Copies the checkpoint of an update, its shards, and the records up to it. Raises ConfigError if it is gone."""
    path = checkpoint_of(source, update)
    try:
        link_or_copy(path, folder.checkpoints / path.name)
        if (shards := path.with_suffix(SHARDS)).is_dir():
            shutil.copytree(shards, folder.checkpoints / shards.name, copy_function=link_or_copy)
    except FileNotFoundError:
        raise ConfigError(f"{path} was deleted by its run in this moment; repeat the command") from None
    for name in RECORDS:
        records = getattr(source, name)
        if records.path.is_file():
            shutil.copyfile(records.path, folder.path / records.path.name)
            getattr(folder, name).rewind(update)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """A hard link to a file; a copy on another file system."""
    if not Path(source).is_file():
        raise FileNotFoundError(source)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def checkpoint_of(folder: RunFolder, update: int) -> Path:
    """The path of the checkpoint of an update."""
    return folder.checkpoints / f"update={update:06d}.ckpt"


def update_of_checkpoint(path: Path) -> int:
    """The update of a checkpoint's name; -1 for another name."""
    number = path.stem.partition("=")[2]
    return int(number) if number.isdecimal() else -1


def _optimizer(config: Mapping[str, Any]) -> str:
    """The class of the optimizer of a config."""
    return str((config.get("optim") or {}).get(TARGET, ADAMW))


def _concerns(line: str, keys: Sequence[str]) -> bool:
    """Whether a line `key: old → new` is about one of the keys or a key below it."""
    key = line.partition(":")[0]
    return any(key == each or key.startswith(f"{each}.") for each in keys)
