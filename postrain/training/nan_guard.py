"""Stops a run whose numbers are broken: weights, gradients, losses or sampled log-probabilities that are NaN or
infinite, and weights that explode.

The loss alone is not enough: if all rewards are equal it is 0 whatever the weights are. So the trained parameters are
checked themselves, after every update.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from postrain.hardware import collectives
from postrain.runs.folder import RunFolder
from postrain.runs.method_protocol import method_of
from postrain.runs.status import last_checkpoint
from postrain.training.record_files import MetricsFile
from postrain.types import ConfigError

WATCHED = ("loss", "policy_loss", "value_loss", "grad_norm", "rollout/logp")
SHOWN_ROWS = 8
# A parameter has exploded when its largest weight is this many times the larger of 1 and its largest weight when
# training began. Adam moves a weight by about the learning rate at each step: no sane run comes near.
EXPLODED = 100.0
REMEDY = "lower method.learning_rate or method.max_grad_norm and look at these rows"


class BrokenModel(ConfigError):
    """The model is broken; its state before is in a checkpoint."""


class NaNGuard(Callback):
    """Raises BrokenModel after writing the record of the update. Must precede evaluation and checkpoints, so that
    neither sees a broken model."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder, self._records = folder, MetricsFile(folder)
        self._before: dict[str, float] = {}
        """The largest weight of each parameter when training began."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before = max_abs(trainable_parameters(pl_module))
        self.check(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        method = method_of(pl_module)
        bad = {f"{name} is {value}": None for name, value in non_finite_metrics(method.last_metrics).items()}
        # Shards of a parameter lie on different ranks: all have to stop for one.
        for found in collectives.gather(self.problems(pl_module)):
            bad |= dict.fromkeys(found)
        if bad:
            self._records.write(trainer, method)
            raise BrokenModel(self._line(pl_module, [*bad]))

    @contextmanager
    def explaining_errors(self, module: LightningModule) -> Iterator[None]:
        """Raises BrokenModel for any other error that broken weights have caused."""
        try:
            yield
        except BrokenModel:
            raise
        except Exception as error:
            if bad := self.problems(module):
                raise BrokenModel(self._line(module, bad)) from error
            raise

    def problems(self, module: nn.Module) -> list[str]:
        """What is wrong with the trained parameters, the first one named; [] if nothing is."""
        return weight_problems(max_abs(trainable_parameters(module)), self._before)

    def check(self, module: LightningModule) -> None:
        """Raises BrokenModel if a trained parameter is broken."""
        if bad := self.problems(module):
            raise BrokenModel(self._line(module, bad))

    def _line(self, module: LightningModule, bad: Sequence[str]) -> str:
        method = method_of(module)
        rows = getattr(method, "current_rows", ())
        return error_message(method.counters.updates, bad, rows, last_checkpoint(self._folder.path))


def trainable_parameters(module: nn.Module) -> dict[str, Tensor]:
    """The parameters that are trained, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def max_abs(parameters: Mapping[str, Tensor]) -> dict[str, float]:
    """The largest absolute value of each floating-point tensor, nan where it holds one; of a shard, this rank's part.

    One pass over the weights and one transfer from the device: `aminmax` is bound by memory, unlike an infinity norm,
    which takes 20 times longer on a CPU.
    """
    whole = {name: local_shard(value) for name, value in parameters.items()}
    whole = {name: value for name, value in whole.items() if value.is_floating_point() and value.numel()}
    ends = [torch.stack(torch.aminmax(value)).float() for value in whole.values()]
    found = torch.stack([pair.to(ends[0].device) for pair in ends]).abs().amax(1).tolist() if ends else []
    return dict(zip(whole, found, strict=True))


def local_shard(value: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; any other as it is."""
    return value.to_local() if isinstance(value, DTensor) else value


def weight_problems(now: Mapping[str, float], before: Mapping[str, float]) -> list[str]:
    """What is wrong with weights of these largest values: NaN, infinity, or growth beyond EXPLODED.

    At most one line, on the first such parameter, with how many others there are.
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
    return [f"{name} holds {value}{others}"]


def check_finite(model: nn.Module, what: str) -> None:
    """Raises ConfigError where a model, frozen parts included, holds NaN or infinity."""
    bad = next((item for item in max_abs(dict(model.named_parameters())).items() if not math.isfinite(item[1])), None)
    if bad is not None:
        raise ConfigError(f"{what}: the weights of {bad[0]} hold {bad[1]}; give another model, or a whole copy of it")


def non_finite_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """The watched metrics that are nan or infinite."""
    return {name: metrics[name] for name in WATCHED if name in metrics and not math.isfinite(metrics[name])}


def error_message(update: int, bad: Sequence[str], rows: Sequence[int], saved: str) -> str:
    """The error message: what is broken, at which update and rows, and the remedy."""
    shown = ", ".join(str(row) for row in rows[:SHOWN_ROWS]) + (", ..." if len(rows) > SHOWN_ROWS else "")
    where = f"update {update}" + (f", data rows {shown}" if rows else "")
    return f"{', '.join(bad)} at {where}; {saved}; {REMEDY}"
