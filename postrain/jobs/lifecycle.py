"""The lifecycle of one session of a run in its folder: lock, status, config, ranks, tracker and report."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from postrain.data.rendering import clock_at
from postrain.errors import ConfigError, Interrupted, RefusedRun
from postrain.evaluation.config import EvaluateConfig
from postrain.generation.config import GenerateConfig
from postrain.hardware.environment import is_first_rank
from postrain.hardware.ranks import process_group
from postrain.hardware.trainer import matmul_precision_restored
from postrain.report import write_report
from postrain.report.console import print_result
from postrain.report.model_card import complete_card
from postrain.runs.context import RunContext, write_config
from postrain.runs.folder import RunFolder
from postrain.runs.interrupt import Interrupt
from postrain.runs.status import StatusRecorder, reported_error
from postrain.training.config import TrainConfig

Config = TrainConfig | GenerateConfig | EvaluateConfig
C = TypeVar("C", TrainConfig, GenerateConfig, EvaluateConfig)
# Files that a report reads: of a run, a pipeline, an evaluation.
REPORT_SOURCES = ("metrics.jsonl", "pipeline.yaml", "evaluation_stats.json")


def run_session(
    run: Callable[[C, RunContext], float | None],
    config: C,
    folder: RunFolder | None,
    interrupt: Interrupt,
    *,
    command: tuple[str, ...],
    overrides: Sequence[str] = (),
    group: str | None = None,
    callbacks: Sequence[Any] = (),
) -> float | None:
    """Runs a program in a folder, which only the first rank has; returns its objective. See RunContext."""
    with (
        matmul_precision_restored(),
        interrupt,
        run_lifecycle(folder, config),
        process_group(config.trainer, folder and folder.path) as path,
        clock_at(RunFolder(path).status.first_started()),
    ):
        context = RunContext(
            folder=RunFolder(path),
            interrupt=interrupt,
            command=command,
            overrides=overrides,
            group=group,
            callbacks=callbacks,
        )
        return run(config, context)


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
        write_config(folder, config)
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
