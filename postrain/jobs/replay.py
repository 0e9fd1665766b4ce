"""Repeats updates of an earlier run in another folder, bit for bit: for forks, `postrain verify` and `postrain why`.

A replay is a resumed run with the saved config that stops after an update as by SIGTERM. The schedule, the rows and the
seeds are those of the whole run. It writes no report, and sends nothing to trackers.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from postrain.config.schema import TARGET
from postrain.config.tree import SESSION, parse
from postrain.config.trust import UntrustedFolder, override_items
from postrain.errors import ConfigError, Interrupted
from postrain.hardware.environment import refuse_ranks
from postrain.jobs.lifecycle import run_session, silence_library_warnings
from postrain.jsonl import number, read_json
from postrain.processor import threads
from postrain.runs.folder import RunFolder
from postrain.runs.forks import ForkPoint, checkpoint_of, settings_since, update_of_checkpoint
from postrain.runs.interrupt import Interrupt
from postrain.runs.resume import check_model, checked_config, training_config
from postrain.runs.sessions import threads_after
from postrain.runs.status import checkpoints
from postrain.training.checkpoints import is_whole
from postrain.training.config import TrainConfig
from postrain.training.loggers import NoTracker
from postrain.training.train import train

ALL = 10**6


def replay(
    run: RunFolder, first: int, last: int, into: Path, *, callbacks: Sequence[Callback] = (), new_rows: bool = False
) -> RunFolder:
    """Repeats the updates after `first`, which has a checkpoint or is 0, up to `last`, in the new folder `into`.

    Returns the folder, with the records up to `last` and all checkpoints from `first` on. `new_rows` repeats them also
    if the rows or the initial weights have changed. Raises ConfigError like a resumed run, and Interrupted by a signal.
    """
    silence_library_warnings()
    config = parse(replay_config(run, allow_change=new_rows), TrainConfig)
    config.check()
    if not new_rows:
        check_model(run, config.resolved)
    folder = RunFolder.at(into)
    ForkPoint(run, first).copy_past(run, folder, checked_config(run))
    interrupt = Interrupt(stop_after=last)
    try:
        with redirect_stdout(io.StringIO()), threads_of(run, first):
            run_session(train, config, folder, interrupt, command=("replay",), callbacks=callbacks)
    except Interrupted:
        if interrupt.received:
            raise
    except ConfigError as error:
        raise ConfigError(str(error).replace(str(into), str(run.path))) from None
    return folder


def replay_config(run: RunFolder, **session: Any) -> Mapping[str, Any]:
    """The saved config of a run, with which it is repeated without a report and trackers."""
    saved = checked_config(run)
    trainer = {**saved["trainer"], "checkpoints_kept": ALL}
    logger = {TARGET: f"{NoTracker.__module__}.{NoTracker.__qualname__}"}
    return {**saved, **SESSION, "fork": None, "trainer": trainer, "logger": logger, "report": False, **session}


def trusted_run(path: str, confirmed: Sequence[str], key: str) -> RunFolder:
    """The training run in a folder. Raises ConfigError if it sets values that are not `confirmed` as KEY=VALUE."""
    run = RunFolder.open(path, key)
    saved = training_config(run, key)
    UntrustedFolder(run.path, override_items(confirmed)).check(saved, TrainConfig)
    return run


def threads_of(run: RunFolder, update: int) -> AbstractContextManager[None]:
    """Uses as many threads as the run after `update`: a sum that is divided among threads has other rounding errors."""
    return threads(threads_after(read_json(run.manifest), update))


def needs_replay(point: ForkPoint) -> bool:
    """Whether updates have to be repeated, because the update has no whole checkpoint."""
    return point.update > 0 and not is_whole(checkpoint_of(point.run, point.update))


def starts(run: RunFolder) -> list[int]:
    """The updates from which the present settings can be re-executed: 0 and those with a whole checkpoint."""
    known = [0, *(update_of_checkpoint(path) for path in checkpoints(run.path) if is_whole(path))]
    return [update for update in known if update >= settings_since(run)]


@contextmanager
def shared_past(point: ForkPoint) -> Iterator[RunFolder]:
    """A folder with a checkpoint of the update: that of the run, or a temporary one in which the run is repeated.

    Raises ConfigError if the updates before it were made with other settings than the run has now.
    """
    if not needs_replay(point):
        yield point.run
        return
    refuse_ranks(f"fork: update {point.update} of {point.run.path} has no checkpoint, so updates are repeated, which")
    known = starts(point.run)
    first = max((update for update in known if update <= point.update), default=None)
    if first is None:
        raise ConfigError(_other_settings(point, known))
    print(f"fork: update {point.update} has no checkpoint; repeating updates {first + 1} to {point.update}", flush=True)
    with tempfile.TemporaryDirectory(prefix="postrain-fork-") as folder:
        yield replay(point.run, first, point.update, Path(folder, "replay"))


def _other_settings(point: ForkPoint, known: Sequence[int]) -> str:
    """Why an update cannot be repeated, and which one can be forked."""
    run, parent = point.run, read_json(point.run.fork)
    remedies = [f"{run.path}@{known[0]}"] if known else []
    if parent.get("run") and point.update <= (number(parent.get("update")) or 0):
        remedies.append(f"{parent['run']}@{point.update}")
    return (
        f"fork: update {point.update} of {run.path} has no checkpoint and cannot be repeated: settings were changed "
        f"after update {settings_since(run)}; give {' or '.join(remedies) or 'another run'}"
    )
