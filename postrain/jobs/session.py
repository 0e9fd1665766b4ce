"""Sessions of train, generate and evaluate: `execute` parses the config, finds or creates the folder, runs a session.

A program is a function of its config and its RunContext; lifecycle.py has the session of a run in its folder.
`python -m postrain.jobs.session FOLDER` is a further rank of the run in that folder.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from postrain.config.overrides import PROGRAMS as COMMANDS
from postrain.config.tree import parse, settings
from postrain.config.trust import Item, UntrustedFolder, config_items
from postrain.data.rendering import clock_at
from postrain.errors import ConfigError, RefusedRun
from postrain.evaluation.config import EvaluateConfig, inherit
from postrain.evaluation.evaluate import evaluate
from postrain.generation.config import GenerateConfig
from postrain.generation.generate import generate
from postrain.hardware.environment import is_first_rank
from postrain.hardware.ranks import process_group
from postrain.jobs.lifecycle import C, Config, run_session, silence_library_warnings
from postrain.jobs.replay import needs_replay, shared_past
from postrain.runs.context import RunContext
from postrain.runs.folder import RunFolder, config_hash
from postrain.runs.forks import FORK, ForkPoint, record_changes
from postrain.runs.interrupt import Interrupt
from postrain.runs.resume import check_model, checked_config, resumed_config, saved_config
from postrain.training.config import TrainConfig
from postrain.training.dry_run import dry_run
from postrain.training.train import train


@dataclass(frozen=True, kw_only=True)
class Program(Generic[C]):
    """A command."""

    config: type[C]
    run: Callable[[C, RunContext], float | None]
    """Runs the program; returns the objective that a sweep compares."""
    primary: str
    """The name of its primary config in conf/."""

    @property
    def command(self) -> tuple[str, ...]:
        """The shell command that starts it."""
        return tuple(COMMANDS[self.primary].split())


TRAIN = Program(config=TrainConfig, run=train, primary="config")
GENERATE = Program(config=GenerateConfig, run=generate, primary="generate")
EVALUATE = Program(config=EvaluateConfig, run=evaluate, primary="evaluate")
STRESS = Program(config=EvaluateConfig, run=evaluate, primary="stress")
PROGRAMS: Mapping[str, Program[Any]] = {"train": TRAIN, "generate": GENERATE, "evaluate": EVALUATE, "stress": STRESS}
"""By the kind of a job."""


def execute(
    program: Program[C],
    config: C | Mapping[str, Any],
    *,
    overrides: Sequence[str] = (),
    group: str | None = None,
    directory: Path | None = None,
    trusted: Collection[Item] = (),
    command: tuple[str, ...] | None = None,
) -> float | None:
    """Runs a program on a config, typed or as plain containers; returns the objective that a sweep compares.

    If the config names a folder in `resume`, the run continues there. `overrides` are those of the command line.
    `directory` is the path of the new run folder, which must not hold a run; None creates one. `trusted` are values
    that the command line set for other stages of a pipeline. `command` is the shell command, if it is not the
    program's own.
    Raises ConfigError for a user's mistake and Interrupted after Ctrl-C or SIGTERM; training progress is saved.
    """
    silence_library_warnings()
    ready = read(program, config, overrides, trusted) if isinstance(config, Mapping) else config
    ready.check()
    resolved = ready.resolved
    earlier = None if isinstance(ready, EvaluateConfig) or ready.resume is None else RunFolder.open(ready.resume)
    point = ForkPoint.parse(ready.fork) if isinstance(ready, TrainConfig) and ready.fork and not earlier else None
    if began := earlier or (point and point.run):
        check_model(began, resolved)
    if earlier and isinstance(ready, TrainConfig) and is_first_rank():
        record_changes(earlier, settings(ready))
    with shared_past(point) if point and is_first_rank() else nullcontext() as past:
        folder = earlier or (new_folder(ready, directory) if is_first_rank() else None)
        is_new = earlier is None and directory is None
        with without_refused(folder) if folder and is_new else nullcontext():
            if point and past and folder:
                point.copy_past(past, folder, settings(ready))
            typed = command or program.command
            return run_session(program.run, ready, folder, Interrupt(), command=typed, overrides=overrides, group=group)


def measure(plain: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """`--dry-run`: prints the memory, time and disk of a training run, without a run folder."""
    silence_library_warnings()
    config = read(TRAIN, plain, overrides, ())
    config.check()
    with tempfile.TemporaryDirectory(prefix="postrain-dry-run-") as folder:
        dry_run(config, Path(folder))


def read(program: Program[C], plain: Mapping[str, Any], overrides: Sequence[str], trusted: Collection[Item]) -> C:
    """Parses the config, completed by the config of the run that it resumes or evaluates."""
    given = config_items(plain) | set(trusted)
    if program.config is EvaluateConfig:
        plain = inherit(plain, overrides, given)
    elif plain.get("resume"):
        earlier = RunFolder.open(plain["resume"])
        plain = resumed_config(earlier, plain, overrides)
        UntrustedFolder(earlier.path, given).check(plain, program.config)
    elif plain.get(FORK):
        point = ForkPoint.parse(plain[FORK])
        plain = point.config(plain, overrides)
        UntrustedFolder(point.run.path, given).check(plain, program.config)
        if needs_replay(point):
            UntrustedFolder(point.run.path, given).check(checked_config(point.run), program.config)
    return parse(plain, program.config)


def new_folder(config: Config, directory: Path | None) -> RunFolder:
    """A new run folder."""
    trains = isinstance(config, TrainConfig)
    if directory is not None:
        return RunFolder.at(directory, trains=trains)
    base, digest = Path(config.paths.output), config_hash(settings(config))
    return RunFolder.create(base, config.label, config.resolved.name, digest, trains=trains)


@contextmanager
def without_refused(folder: RunFolder) -> Iterator[None]:
    """Removes the folder of a run that is refused before its first update.

    Jobs of sweeps and pipelines keep their folders, whose status their summary shows.
    """
    try:
        yield
    except ConfigError as error:
        announced = folder.manifest.exists()
        if isinstance(error, RefusedRun) or not announced:
            shutil.rmtree(folder.path, ignore_errors=True)
            # Those of its name and its model, unless they hold other runs.
            with suppress(OSError):
                folder.path.parent.rmdir()
                folder.path.parents[1].rmdir()
            if announced:
                print(f"removed {folder.path}: the run made no update")
        raise


def main(path: str) -> None:
    """A further rank of the training run in the folder `path`."""
    folder = RunFolder.open(path)
    silence_library_warnings()
    config = parse(saved_config(folder), TrainConfig)
    with Interrupt() as interrupt, process_group(config.trainer, None), clock_at(folder.status.first_started()):
        train(config, RunContext(folder=folder, interrupt=interrupt, command=TRAIN.command))


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except ConfigError:
        # The process group has printed it.
        sys.exit(1)
