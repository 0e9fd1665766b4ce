"""The lifecycle shared by train, generate and evaluate: one session of a run, in its folder.

`execute` parses the config, finds or creates the folder, locks it, updates its status, handles signals, starts the
ranks, closes the tracker and writes the report. A program is a function of its config and its RunContext.
`python -m postrain.jobs.session FOLDER` is a further rank of the run in that folder.
"""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from omegaconf import OmegaConf

from postrain.config.overrides import PROGRAMS as COMMANDS
from postrain.config.tree import parse, settings
from postrain.config.trust import Item, UntrustedFolder, config_items
from postrain.data.rendering import clock_at
from postrain.errors import ConfigError, Interrupted, RefusedRun
from postrain.evaluation.config import EvaluateConfig, inherit
from postrain.evaluation.evaluate import evaluate
from postrain.generation.config import GenerateConfig
from postrain.generation.generate import generate
from postrain.hardware.environment import is_first_rank
from postrain.hardware.ranks import process_group
from postrain.hardware.trainer import matmul_precision_restored
from postrain.jsonl import atomic_write_text
from postrain.report import write_report
from postrain.report.console import print_result
from postrain.report.model_card import complete_card
from postrain.runs.context import RunContext
from postrain.runs.folder import RunFolder, config_hash
from postrain.runs.interrupt import Interrupt
from postrain.runs.resume import check_model, resumed_config, saved_config
from postrain.runs.status import StatusRecorder, reported_error, writing
from postrain.training.config import TrainConfig
from postrain.training.dry_run import dry_run
from postrain.training.train import train

Config = TrainConfig | GenerateConfig | EvaluateConfig
C = TypeVar("C", TrainConfig, GenerateConfig, EvaluateConfig)
# Files that a report reads: of a run, a pipeline, an evaluation.
REPORT_SOURCES = ("metrics.jsonl", "pipeline.yaml", "evaluation_stats.json")


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
    if earlier:
        check_model(earlier, resolved)
    folder = earlier or (new_folder(ready, directory) if is_first_rank() else None)
    is_new = earlier is None and directory is None
    with (
        matmul_precision_restored(),
        Interrupt() as interrupt,
        without_refused(folder) if folder and is_new else nullcontext(),
        run_lifecycle(folder, ready),
        process_group(ready.trainer, folder and folder.path) as path,
    ):
        run_folder = RunFolder(path)
        with clock_at(run_folder.status.first_started()):
            context = RunContext(
                folder=run_folder,
                interrupt=interrupt,
                command=command or program.command,
                overrides=overrides,
                group=group,
            )
            return program.run(ready, context)


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


@contextmanager
def run_lifecycle(folder: RunFolder | None, config: Config) -> Iterator[None]:
    """Locks the folder, writes status.json, config.yaml and the report, and closes the tracker. Further ranks under
    torchrun only record their failure."""
    if folder is None or not is_first_rank():
        try:
            yield
        except Exception as error:
            if folder:
                folder.status.failed(str(error) or type(error).__name__)
            raise
        return
    close = config.tracker.close if isinstance(config, TrainConfig) else None
    report = not isinstance(config, GenerateConfig) and config.report
    with folder.locked(), StatusRecorder(folder.status), report_on_exit(folder, report, close):
        with writing(folder.config):
            atomic_write_text(folder.config, OmegaConf.to_yaml(settings(config)), private=True)
        yield


@contextmanager
def report_on_exit(folder: RunFolder, report: bool, close: Callable[[str], None] | None = None) -> Iterator[None]:
    """Closes the tracker, prints the verdict of a finished run, and writes report.html, also for a failed run."""
    status, reason = "failed", ""
    try:
        yield
        status = "done"
    except Interrupted as stop:
        status, reason = "interrupted", stop.signal.name
        raise
    except RefusedRun as error:
        reason, report = str(error), False
        raise
    except BaseException as error:
        reason = str(reported_error(error, folder.path))
        raise
    finally:
        # An error from here on must not hide why the run failed.
        with suppress(*(() if status == "done" else (ConfigError, OSError))):
            if close:
                close(status)
            # A run that failed before its first record has no report.
            if any((folder.path / name).exists() for name in REPORT_SOURCES):
                folder.status.set(status, reason)
                if status == "done" and folder.metrics.path.exists():
                    print_result(folder.path)
                    complete_card(folder.path)
                if report:
                    print(f"report  {write_report(folder.path)}")


def silence_library_warnings() -> None:
    """Suppresses advertisements and hints of libraries."""
    warnings.filterwarnings("ignore", category=UserWarning, module=r"lightning\.(pytorch|fabric)")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


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
