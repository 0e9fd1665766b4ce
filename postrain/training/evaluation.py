"""Runs evaluations during training and writes the results to the update's metrics, the record files and histograms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from postrain.data.module import DataModule
from postrain.evaluation.eval_model_factory import EvalModelFactory
from postrain.evaluation.evaluator import Evaluation, TrainingEvalResult, evaluate
from postrain.methods.base import Method
from postrain.methods.online import Online
from postrain.rewards.base import nan_to_none
from postrain.training.logger_media import log_histograms
from postrain.training.record_files import HeldOutFile, Sample, SamplesFile


class Evaluator(Callback):
    """Evaluates before the first update, every `settings.every` updates, and after the last one."""

    def __init__(
        self,
        data: DataModule,
        settings: Evaluation,
        samples: SamplesFile,
        held_out: HeldOutFile,
        eval_model: EvalModelFactory,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        """`callbacks` precede this one: early stopping and the user's. An evaluation is a validation to them."""
        self.data, self.settings, self.eval_model = data, settings, eval_model
        self.samples, self.held_out = samples, held_out
        self.callbacks = callbacks
        self.printed: set[str] = set()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Method)
        if pl_module.counters.updates == 0:
            pl_module.last_metrics = self.run_evaluation(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Method)
        update, last = pl_module.counters.updates, pl_module.counters.updates == pl_module.updates
        pl_module.stop_reason = pl_module.stop_reason or self.callback_stop_reason(trainer, update, last)
        if update % self.settings.every == 0 or last or pl_module.stop_reason:
            found = self.run_evaluation(trainer, pl_module)
            pl_module.last_metrics = pl_module.last_metrics | found
            pl_module.log_dict(found, batch_size=1, logger=False)
            # Lightning's EarlyStopping and ModelCheckpoint and Optuna's pruning act on this hook.
            for callback in self.callbacks:
                callback.on_validation_end(trainer, pl_module)
            pl_module.stop_reason = pl_module.stop_reason or self.callback_stop_reason(trainer, update, last)

    def callback_stop_reason(self, trainer: Trainer, update: int, last: bool) -> str:
        """Why a user's callback ends the run at this update; empty if none does."""
        return f"a callback stopped training at update {update}" if trainer.should_stop and not last else ""

    def run_evaluation(self, trainer: Trainer, method: Method) -> dict[str, float]:
        """Evaluates once and writes the first completions to samples.jsonl."""
        with trainer.precision_plugin.forward_context():
            found = evaluate(method, self.data, self.settings, self.eval_model(method))
        if trainer.is_global_zero:
            self.print_notes(found)
            log_histograms(trainer.loggers, distributions(method, found), method.counters.updates)
        self.held_out.write(trainer, method.counters.updates, found.rows)
        self.samples.write(trainer, method.counters.updates, samples(found, self.settings.logged_samples))
        return dict(found.metrics)

    def print_notes(self, found: TrainingEvalResult) -> None:
        """Prints the notes of the evaluation tasks, each line once."""
        for name, notes in found.notes.items():
            for line in [f"evaluation.tasks.{name}: {note}" for note in notes]:
                if line not in self.printed:
                    print(line, flush=True)
                self.printed.add(line)


def distributions(method: Method, found: TrainingEvalResult) -> dict[str, Tensor]:
    """Values for histograms: rewards and lengths of completions, ratios and advantages of the last optimizer step."""
    known = method.distributions() if isinstance(method, Online) else {}
    if found.rollouts is not None:
        known["completion/length"] = torch.tensor([float(row.sum()) for row in found.rollouts.rows.supervised])
        if method.components.reward is not None:
            known["reward/total"] = found.rollouts.reward_B
    return {f"distribution/{name}": values for name, values in known.items()}


def samples(found: TrainingEvalResult, count: int) -> list[Sample]:
    """The first `count` completions of an evaluation, as records of samples.jsonl."""
    if found.rollouts is None:
        return []
    rollouts = found.rollouts
    return [
        Sample(row, prompt, completion, {**rewards, "total": total} if rewards else {}, gold)
        for row, prompt, completion, rewards, total, gold in zip(
            rollouts.rows.row_ids,
            rollouts.prompts,
            rollouts.completions,
            rollouts.parts,
            nan_to_none(rollouts.reward_B),
            found.gold,
            strict=True,
        )
    ][:count]
