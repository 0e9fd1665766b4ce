"""Early stopping on a flat reward or a KL blow-up; the run is still evaluated and exported.

A reward is flat if it does not exceed that of the first updates; a run that has improved and then plateaus continues.
Unlike Lightning's EarlyStopping it counts updates instead of validation epochs, and a resumed run reads its state from
metrics.jsonl. Must precede the Evaluator, which evaluates a stopped run.

A run that ended early, also by a user's callback, makes no further update when it is resumed, unless its settings have
been changed since.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from postrain.config.schema import Section
from postrain.jsonl import number, update_of
from postrain.runs.folder import RunFolder
from postrain.runs.forks import settings_since
from postrain.runs.method_protocol import method_of
from postrain.types import Count, Positive

REWARD = "reward/total"
KL = ("kl/exact", "kl/k3")
EVAL_KL = "eval/kl/exact"
SMOOTHED = 5
"""Updates over which the KL is averaged."""
STOPPED = "stop_reason"
"""Key of a checkpoint: why the run ends there; empty otherwise, absent in checkpoints of an earlier version."""


@dataclass(frozen=True, kw_only=True)
class EarlyStop(Section):
    """The `early_stop` keys; null never stops."""

    flat_updates: Count | None = None
    """Stop when the mean reward of the last N updates does not exceed that of the first N. Checked every N updates;
    null disables it."""
    kl_above: Positive | None = None
    """Stop when KL(policy‖reference), in nats/token, averaged over 5 updates, exceeds this; null disables it. For a
    method that logs no KL in training, it is the eval/kl/exact of every evaluation."""


def flat(rewards: Sequence[float], size: int) -> bool:
    """Whether the mean of the last `size` rewards does not exceed that of the first.

    False except at every `size`-th update from 2 * `size` on, so that noise rarely stops a slowly improving run.
    """
    if len(rewards) < 2 * size or len(rewards) % size:
        return False
    return fmean(rewards[-size:]) <= fmean(rewards[:size])


class EarlyStopping(Callback):
    """Checks the metrics after every update."""

    def __init__(self, settings: EarlyStop, folder: RunFolder) -> None:
        self.settings, self.folder = settings, folder
        self.rewards: list[float] = []
        self.kl: deque[float] = deque(maxlen=SMOOTHED)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[STOPPED] = method_of(pl_module).stop_reason

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if settings_since(self.folder) < method_of(pl_module).counters.updates:
            method_of(pl_module).stop_reason = checkpoint.get(STOPPED, "")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reads the metrics of a resumed run; makes no update if it has ended early."""
        method = method_of(pl_module)
        if method.stop_reason:
            trainer.should_stop = True
            if trainer.is_global_zero:
                print("resume: this run ended early; changed settings with allow_change=true continue it", flush=True)
        for record in self.folder.metrics.read():
            if 0 < update_of(record) <= method.counters.updates:
                self._remember(
                    {name: value for name in (REWARD, *KL) if (value := number(record.get(name))) is not None}
                )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        method = method_of(pl_module)
        self._remember(method.last_metrics)
        reason = self.reason()
        if reason and method.counters.updates < method.updates:
            method.stop_reason = f"{reason} at update {method.counters.updates}"
            trainer.should_stop = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After an evaluation: checks its KL if updates log none."""
        method, limit = method_of(pl_module), self.settings.kl_above
        found = method.last_metrics.get(EVAL_KL)
        if limit is None or self.kl or found is None or method.counters.updates >= method.updates:
            return
        if found > limit and not method.stop_reason:
            method.stop_reason = f"{EVAL_KL} {_above(found, limit)} at update {method.counters.updates}"
            trainer.should_stop = True

    def reason(self) -> str:
        """The reason to stop; empty if there is none."""
        size, limit = self.settings.flat_updates, self.settings.kl_above
        if limit is not None and len(self.kl) == SMOOTHED and fmean(self.kl) > limit:
            return f"KL to the reference {_above(fmean(self.kl), limit)}"
        if size is not None and flat(self.rewards, size):
            now, then = fmean(self.rewards[-size:]), fmean(self.rewards[:size])
            return f"reward {now:.3g} has not risen from {then:.3g} (early_stop.flat_updates={size})"
        return ""

    def _remember(self, metrics: dict[str, float]) -> None:
        if REWARD in metrics:
            self.rewards.append(metrics[REWARD])
        self.kl.extend([metrics[name] for name in KL if name in metrics][:1])


def _above(kl: float, limit: float) -> str:
    return f"{kl:.3g} is above early_stop.kl_above={limit:g}"
