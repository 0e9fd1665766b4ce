"""`postrain train ... --dry-run`: what a run needs, without a run folder.

Reads and audits the data, estimates the memory, then measures an evaluation, two updates and a checkpoint. The process
ends afterwards, so that nothing of them remains.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from postrain.data.module import DataModule
from postrain.evaluation.eval_model_factory import EvalModelFactory
from postrain.evaluation.evaluator import evaluate
from postrain.formatting import duration
from postrain.hardware.memory import peak_memory
from postrain.methods.base import Method
from postrain.methods.reference_model import ReferenceModelMixin
from postrain.rollout.vllm import VLLMEngine
from postrain.training.components import Components, build, check_reward
from postrain.training.config import TrainConfig
from postrain.training.memory import GIB, MemoryEstimate, estimate, refuse_if_too_large
from postrain.training.nan_guard import check_finite

UPDATES = 2
"""Updates that are measured."""


def dry_run(config: TrainConfig, folder: Path) -> None:
    """Prints what the run of this config needs; `folder` is temporary.

    Several ranks are not started: only the estimate is printed for them. Raises ConfigError for a run that would not
    start.
    """
    found: list[MemoryEstimate] = []
    if isinstance(config.rollout, VLLMEngine):
        # A missing server is reported at once.
        config = replace(config, rollout=replace(config.rollout, server_timeout=0.0))

    def before_weights(config: TrainConfig, data: DataModule) -> None:
        print(f"{data.audit.render()}\n{config.learning_rate_line}", flush=True)
        found.append(estimate(config, data))
        print(found[0].render(), flush=True)
        refuse_if_too_large(config, found[0])
        if config.trainer.strategy != "single":
            raise _OnlyEstimated

    started = time.perf_counter()
    try:
        components = build(config, before_weights=before_weights)
    except _OnlyEstimated:
        print(f"time: measured for one process only, not with trainer.strategy={config.trainer.strategy}")
        return
    measured = measure(config, components, folder, loading=time.perf_counter() - started)
    print("\n".join(measured.lines(config, found[0])), flush=True)


class _OnlyEstimated(Exception):
    """Ends a dry run before weights are loaded."""


@dataclass
class Measured:
    """Seconds and bytes of one run."""

    loading: float
    updates: list[float] = field(default_factory=list)
    evaluation: float = 0.0
    reference: float = 0.0
    """Seconds of reference log-probabilities of all rows."""
    saving: float = 0.0
    checkpoint: int = 0
    model: int = 0
    """Bytes of the exported model."""
    peak: int = 0

    def lines(self, config: TrainConfig, estimated: MemoryEstimate) -> Iterator[str]:
        """For the console."""
        method, every, hardware = config.method, config.evaluation.every, config.trainer
        evaluations = 1 + -(-method.updates // every)
        update = statistics.mean(self.updates)
        saves = -(-method.updates // hardware.checkpoint_every)
        total = self.loading + self.reference + method.updates * update + evaluations * self.evaluation
        yield f"measured on {UPDATES} updates:"
        yield f"  {'update':<14}{duration(update)}  ({', '.join(map(duration, self.updates))})"
        yield f"  {'evaluation':<14}{duration(self.evaluation)}  ({evaluations} in the run)"
        if self.reference:
            yield f"  {'reference':<14}{duration(self.reference)}  (log-probabilities of all rows, cached afterwards)"
        yield f"  {'checkpoint':<14}{duration(self.saving)}  ({saves} in the run)"
        yield f"  {'total':<14}{duration(total + saves * self.saving)}  ({method.updates:,} updates)"
        yield f"  {'memory':<14}{self.peak / GIB:.2f} GiB at the peak  (estimate {estimated.total / GIB:.2f} GiB)"
        kept = min(saves, hardware.checkpoints_kept)
        disk, base = kept * self.checkpoint + self.model, Path(config.paths.output)
        free = shutil.disk_usage(next(path for path in (base, *base.absolute().parents) if path.is_dir())).free
        yield (
            f"  {'disk':<14}{disk / GIB:.2f} GiB of {free / GIB:.0f} GiB free  ({kept} checkpoints of "
            f"{self.checkpoint / GIB:.2f} GiB, model {self.model / GIB:.2f} GiB)"
        )
        yield f"nothing was written to {config.paths.output}; start the run with the same command without --dry-run"


def measure(config: TrainConfig, components: Components, folder: Path, *, loading: float) -> Measured:
    """Measures one evaluation, UPDATES updates and a checkpoint."""
    method, data = components.method, components.data
    check_finite(method, f"model={config.resolved.name}")
    if method.needs_reward:
        check_reward(method, data)
    if isinstance(method, ReferenceModelMixin):
        method.writes_cache = False  # the rows of these updates are not those of the run
    watch = Stopwatch(config, components, folder, Measured(loading))
    # The loader ends after these updates; the learning-rate schedule is that of the whole run.
    data.spec = replace(data.spec, updates=min(UPDATES, method.updates))
    trainer = config.trainer.make_trainer([watch], [], folder)
    trainer.fit(method, datamodule=data)
    found = watch.found
    adapted = hasattr(method.policy, "peft_config")
    exported = [p for p in method.policy.parameters() if p.requires_grad or not adapted]
    found.model = sum(p.numel() * p.element_size() for p in exported)
    found.peak = torch.cuda.max_memory_allocated() if config.trainer.device.type == "cuda" else peak_memory()
    return found


class Stopwatch(Callback):
    """Times the parts of a short run."""

    def __init__(self, config: TrainConfig, components: Components, folder: Path, found: Measured) -> None:
        self.config, self.data, self.folder, self.found = config, components.data, folder, found
        self.eval_model = EvalModelFactory(config.resolved, components.data, config.reward)
        self.used = rows_used(components.method, components.data)
        self.started = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.started = time.perf_counter()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Method)
        if getattr(pl_module, "is_cached", False):
            share = self.used / rows_used(pl_module, self.data)
            self.found.reference = (time.perf_counter() - self.started) * share

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Method)
        with self.timed("evaluation"), trainer.precision_plugin.forward_context():
            evaluate(pl_module, self.data, self.config.evaluation, self.eval_model(pl_module))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.found.updates.append(time.perf_counter() - self.started)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        path = self.folder / "checkpoint.ckpt"
        with self.timed("saving"):
            trainer.save_checkpoint(path)
        self.found.checkpoint = path.stat().st_size

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Records the seconds of the block."""
        started = time.perf_counter()
        yield
        setattr(self.found, name, time.perf_counter() - started)


def rows_used(method: Method, data: DataModule) -> int:
    """Rows of the run's batches and held-out rows."""
    return min(len(data.train), data.spec.updates * data.spec.batch_size) + len(data.eval)
