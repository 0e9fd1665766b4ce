"""Stops a run with NaN or infinite weights, gradients, losses or sampled log-probabilities, or with exploding weights.

Checking the loss is not enough: with equal rewards it is 0 for any weights. So the trained parameters
themselves are checked after every update.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from postrain.errors import ConfigError
from postrain.hardware import collectives
from postrain.hardware.sharding import local_shard
from postrain.runs.folder import RunFolder
from postrain.runs.method_protocol import method_of
from postrain.runs.status import last_checkpoint
from postrain.training.record_files import MetricsFile

WATCHED = ("loss", "policy_loss", "value_loss", "grad_norm", "rollout/logp")
MAX_ROWS = 8
# A parameter has exploded when its largest absolute weight exceeds this many times max(1, its value before training).
# Adam moves a weight by about the learning rate per step, so healthy runs stay far below.
EXPLODED = 100.0
REMEDY = "lower method.learning_rate or method.max_grad_norm and inspect these rows"


class BrokenModel(ConfigError):
    """The model has non-finite or exploding numbers; the last checkpoint holds an earlier state."""


class NaNGuard(Callback):
    """Raises BrokenModel after writing the record of the update. Must precede evaluation and checkpoints, so that
    neither sees a broken model."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder, self._records = folder, MetricsFile(folder)
        self._before: dict[str, float] = {}
        """Largest absolute weight of each parameter before training."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before = max_abs(trainable_parameters(pl_module))
        self.check(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        method = method_of(pl_module)
        bad = {f"{name} is {value}": None for name, value in non_finite_metrics(method.last_metrics).items()}
        # Shards of a parameter are on different ranks, and all ranks must stop.
        for found in collectives.gather(self.problems(pl_module)):
            bad |= dict.fromkeys(found)
        if bad:
            self._records.write(trainer, method)
            raise BrokenModel(self._message(pl_module, [*bad]))

    @contextmanager
    def explaining_errors(self, module: LightningModule) -> Iterator[None]:
        """Raises BrokenModel in place of another error if the weights are broken, since they are its likely cause."""
        try:
            yield
        except BrokenModel:
            raise
        except Exception as error:
            if bad := self.problems(module):
                raise BrokenModel(self._message(module, bad)) from error
            raise

    def problems(self, module: nn.Module) -> list[str]:
        """The problem of the first broken parameter, as a list of at most one line."""
        return weight_problems(max_abs(trainable_parameters(module)), self._before)

    def check(self, module: LightningModule) -> None:
        """Raises BrokenModel if a trained parameter is broken."""
        if bad := self.problems(module):
            raise BrokenModel(self._message(module, bad))

    def _message(self, module: LightningModule, bad: Sequence[str]) -> str:
        method = method_of(module)
        rows = getattr(method, "current_rows", ())
        return error_message(method.counters.updates, bad, rows, last_checkpoint(self._folder.path))


def trainable_parameters(module: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def max_abs(parameters: Mapping[str, Tensor]) -> dict[str, float]:
    """Largest absolute value of each floating-point tensor (of this rank's shard); nan if it contains one.

    One pass over the weights and one transfer from the device. `aminmax` is memory-bound; an infinity norm takes 20
    times longer on a CPU.
    """
    whole = {name: local_shard(value) for name, value in parameters.items()}
    whole = {name: value for name, value in whole.items() if value.is_floating_point() and value.numel()}
    ends = [torch.stack(torch.aminmax(value)).float() for value in whole.values()]
    found = torch.stack([pair.to(ends[0].device) for pair in ends]).abs().amax(1).tolist() if ends else []
    return dict(zip(whole, found, strict=True))


def weight_problems(now: Mapping[str, float], before: Mapping[str, float]) -> list[str]:
    """One line on the first parameter that is NaN, infinite or beyond EXPLODED, with a count of the others; else [].

    `now` and `before` are largest absolute values by parameter name.
    """
    limits = {name: EXPLODED * max(1.0, value) for name, value in before.items()}
    bad = {
        name: value for name, value in now.items() if not (math.isfinite(value) and value <= limits.get(name, math.inf))
    }
    if not bad:
        return []
    name, value = next(iter(bad.items()))
    others = f" (and {len(bad) - 1} further parameters)" if len(bad) > 1 else ""
    if math.isfinite(value):
        return [f"the largest weight of {name} has grown from {before[name]:.3g} to {value:.3g}{others}"]
    return [f"{name} contains {value}{others}"]


def check_finite(model: nn.Module, what: str) -> None:
    """Raises ConfigError if a parameter of a model, frozen or not, contains NaN or infinity."""
    bad = next((item for item in max_abs(dict(model.named_parameters())).items() if not math.isfinite(item[1])), None)
    if bad is not None:
        raise ConfigError(f"{what}: the weights of {bad[0]} contain {bad[1]}; give another model or an intact copy")


def non_finite_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """The watched metrics that are NaN or infinite."""
    return {name: metrics[name] for name in WATCHED if name in metrics and not math.isfinite(metrics[name])}


def error_message(update: int, bad: Sequence[str], rows: Sequence[int], saved: str) -> str:
    """The error message: the problem, the update and its data rows, the last checkpoint, the remedy."""
    listed = ", ".join(str(row) for row in rows[:MAX_ROWS]) + (", ..." if len(rows) > MAX_ROWS else "")
    where = f"update {update}" + (f", data rows {listed}" if rows else "")
    return f"{', '.join(bad)} at {where}; {saved}; {REMEDY}"
