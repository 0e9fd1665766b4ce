"""The training command: build → audit → fit → export, on every rank of a run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger

from postrain.config.masking import masked
from postrain.config.tree import settings_of
from postrain.errors import ConfigError, Interrupted, RefusedRun
from postrain.evaluation.eval_model_factory import EvalModelFactory
from postrain.hardware.environment import is_first_rank
from postrain.hardware.trainer import Hardware
from postrain.methods.base import Method
from postrain.methods.reference_model import ReferenceModelMixin
from postrain.models.size import size_of
from postrain.processor import bf16_speedup
from postrain.runs.context import RunContext
from postrain.runs.forks import update_of_checkpoint
from postrain.runs.resume import check_data, check_reference
from postrain.training.checkpoints import Checkpoints, newest_readable, set_aside
from postrain.training.components import Components, build, check_reward, gather_policy, training_notes
from postrain.training.config import TrainConfig
from postrain.training.diagnostics import Diagnostics
from postrain.training.early_stopping import EarlyStopping
from postrain.training.evaluation import Evaluator
from postrain.training.finalize import finalize
from postrain.training.nan_guard import BrokenModel, NaNGuard, check_finite
from postrain.training.progress import ProgressLine
from postrain.training.record_files import HeldOutFile, MetricsFile, SamplesFile
from postrain.training.rollout_dtype import settle_rollout_dtype
from postrain.training.throughput import Throughput

LARGE_MODEL = 50_000_000
"""Parameters from which matrix products take most of an update."""


def train(config: TrainConfig, run: RunContext) -> float | None:
    """Trains in the run folder, from its newest checkpoint if there is one; returns the headline metric."""
    components = build(config)
    method, first = components.method, is_first_rank()
    settled = settle_rollout_dtype(config, components)
    checkpoint, damaged = newest_readable(run.folder.path)
    if first:
        if settled:
            run.save_config(config)
        announce(config, components, run, checkpoint, settled)
    loggers = make_loggers(config, run) if first else []
    for path in damaged if first else []:
        print(f"warning: {path} is damaged and was renamed to {set_aside(path).name}", file=sys.stderr)
    guard = NaNGuard(run.folder)
    trainer_callbacks = callbacks(config, components, run, guard)
    with refusing_before_first_update(method):
        check_finite(method, f"model={config.resolved.name}")
        if method.needs_reward and checkpoint is None:
            with config.trainer.autocast():
                check_reward(method, components.data)
        trainer = config.trainer.make_trainer(trainer_callbacks, loggers, run.folder.path)
        with guard.explaining_errors(method):
            trainer.fit(method, datamodule=components.data, ckpt_path=checkpoint, weights_only=True)
    if run.interrupt.signal is not None:
        raise Interrupted(run.interrupt.signal)
    guard.check(method)
    gather_policy(config, components)
    return finalize(config, components, run.folder) if first else None


@contextmanager
def refusing_before_first_update(method: Method) -> Iterator[None]:
    """Raises a ConfigError before the first update as RefusedRun, so that the folder of a new run is removed.

    Not BrokenModel: its message names a file with the batch.
    """
    try:
        yield
    except ConfigError as error:
        if method.counters.updates or isinstance(error, BrokenModel):
            raise
        raise RefusedRun(str(error)) from error


def announce(
    config: TrainConfig, components: Components, run: RunContext, checkpoint: Path | None, settled: Sequence[str]
) -> None:
    """Prints the audit and `settled`, a line for each setting that was measured, and writes the manifest.

    Raises ConfigError if an earlier session of the run had another reference or other rows.
    """
    check_reference(run.folder, components.reference)
    if not config.allow_change:
        check_data(run.folder, components.audit)
    reference = components.method.components.reference
    notes = [
        *settled,
        *training_notes(components, config.resolved, config.adapter),
        *precision_note(config.trainer, config.method, size_of(config.resolved)),
    ]
    lines = [components.audit.render(), config.learning_rate_line, *notes, f"run folder: {run.folder.path}"]
    print("\n".join([reference.description, *lines] if reference else lines), flush=True)
    other = components.reference.fingerprint if components.reference else None
    update = update_of_checkpoint(checkpoint) if checkpoint else 0
    seeds = {"seed": config.seed}
    run.save_manifest(config, components.audit, config.resolved, seeds=seeds, reference=other, update=update)


def precision_note(
    hardware: Hardware, method: Method, parameters: int, speedup: Callable[[], float] = bf16_speedup
) -> list[str]:
    """A note on bf16 if float32 updates of a large model would be much faster with it on this CPU.

    Not for methods with a reference or with samples: bf16 rounds log-ratios by up to 0.1 nats.
    """
    if hardware.accelerator != "cpu" or hardware.precision != "fp32":
        return []
    if method.samples or method.needs_reference() or isinstance(method, ReferenceModelMixin):
        return []
    if parameters < LARGE_MODEL or (factor := speedup()) < 3:
        return []
    return [
        f"note: this processor multiplies bf16 matrices {factor:.0f} times as fast as float32 ones; "
        "trainer.precision=bf16-mixed makes updates faster"
    ]


def make_loggers(config: TrainConfig, run: RunContext) -> list[Logger]:
    """The loggers of a run. The name of a sweep's job includes its distinguishing settings, since some trackers merge
    runs of equal names."""
    name = f"{config.name} · {run.group}" if run.group else run.folder.name
    settings = masked(settings_of(config))
    return config.tracker.build(run_dir=run.folder.path, run_name=name, group=run.group, config=settings)


def callbacks(config: TrainConfig, components: Components, run: RunContext, guard: NaNGuard) -> list[Callback]:
    """In the order in which they act after an update: check, evaluate, record, diagnose, interrupt, save."""
    folder, hardware = run.folder, config.trainer
    samples, held_out = SamplesFile(folder), HeldOutFile(folder)
    eval_model = EvalModelFactory(config.resolved, components.data, config.reward)
    user_callbacks, early_stopping = list(config.callbacks.values()), EarlyStopping(config.early_stop, folder)
    has_bar = any(isinstance(one, ProgressBar) for one in user_callbacks)
    progress = [] if has_bar else [ProgressLine(f"{config.name or folder.path.parts[-3]} · {config.resolved.name}")]
    return [
        *run.callbacks,
        Throughput(),
        guard,
        early_stopping,
        samples,
        held_out,
        *user_callbacks,
        Evaluator(components.data, config.evaluation, samples, held_out, eval_model, [early_stopping, *user_callbacks]),
        MetricsFile(folder),
        Diagnostics(folder),
        *progress,
        run.interrupt,
        Checkpoints(folder, guard, every=hardware.checkpoint_every, keep=hardware.checkpoints_kept),
    ]
