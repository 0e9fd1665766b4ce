"""One update of a run, without a run folder: its gradient, its change of the weights, its rows and its samples.

The update is the first of a new run, or the next one after a checkpoint. It is trained as `postrain train` trains it.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from postrain.errors import ConfigError
from postrain.methods.base import Method
from postrain.methods.reference_model import ReferenceModelMixin
from postrain.runs.folder import RunFolder
from postrain.runs.forks import update_of_checkpoint
from postrain.runs.status import checkpoints
from postrain.training.checkpoints import is_whole
from postrain.training.components import build
from postrain.training.config import TrainConfig

Tensors = Mapping[str, Tensor]
"""Float32 tensors on the CPU by the name of a trained parameter."""


@dataclass(frozen=True)
class Gap:
    """The difference of two vectors."""

    relative: float
    """|b − a| / |a|; infinite if one of them is not finite"""
    norm_ratio: float
    """|b| / |a|"""
    cosine: float

    @classmethod
    def between(cls, a: Tensors, b: Tensors) -> Gap | None:
        """The difference of `b` to `a`; None if they are of different parameters."""
        if [(name, one.shape) for name, one in a.items()] != [(name, one.shape) for name, one in b.items()]:
            return None
        first, second = (math.sqrt(_dot(each, each)) for each in (a, b))
        apart = math.sqrt(sum(float((b[name] - one).square().sum()) for name, one in a.items()))
        if not math.isfinite(apart):
            # NaN or infinite: no difference could be larger.
            return cls(math.inf, second / first if first else math.inf, math.nan)
        if not first:
            return cls(math.inf if apart else 0.0, math.inf if second else 1.0, 0.0 if second else 1.0)
        cosine = _dot(a, b) / (first * second) if second else 0.0
        return cls(apart / first, second / first, max(-1.0, min(1.0, cosine)))


def _dot(a: Tensors, b: Tensors) -> float:
    return sum(float((one * b[name]).sum()) for name, one in a.items())


@dataclass(frozen=True)
class UpdateTrace:
    """What one update did."""

    gradient: Tensors
    """Of the first optimizer step, before it is clipped."""
    step: Tensors
    """Weights after the update minus weights before it."""
    loss: float
    """The mean of the update."""
    rows: str
    """Hash of the rows of the batch."""
    samples: str
    """Hash of the tokens that the loss is computed on."""
    first_step: str
    """Hash of the tokens of the first optimizer step."""
    optimizer_steps: int


def checkpoint_before(folder: RunFolder | None, update: int) -> tuple[Path | None, int]:
    """The newest whole checkpoint of a run before an update, and its number of finished updates; (None, 0) for none."""
    known = [(path, update_of_checkpoint(path)) for path in (checkpoints(folder.path) if folder else [])]
    return next(((path, done) for path, done in reversed(known) if 0 <= done < update and is_whole(path)), (None, 0))


def trace_update(config: TrainConfig, checkpoint: Path | None = None, done: int = 0) -> UpdateTrace:
    """Trains one update of this config: the first one, or the next after `checkpoint`, which has `done` updates.

    Raises ConfigError for a config that cannot run in this process.
    """
    config.check()
    if config.trainer.strategy != "single":
        raise ConfigError(f"trainer.strategy={config.trainer.strategy}: expected one process; use trainer=cpu")
    components = build(config)
    method, data = components.method, components.data
    if isinstance(method, ReferenceModelMixin):
        method.writes_cache = False
    # The loader ends after this update; the learning-rate schedule is that of the whole run.
    data.spec = replace(data.spec, updates=done + 1)
    recorder = Recorder()
    with tempfile.TemporaryDirectory(prefix="postrain-update-") as folder:
        trainer = config.trainer.make_trainer([recorder], [], Path(folder))
        trainer.fit(method, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return recorder.trace(method)


@dataclass
class Recorder(Callback):
    """Records the gradient of the first optimizer step and the weights around the update."""

    before: dict[str, Tensor] = field(default_factory=dict)
    gradient: dict[str, Tensor] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    steps_before: int = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Not earlier: trials of a learning rate compute gradients too."""
        assert isinstance(pl_module, Method)
        method, prepare, accumulate = pl_module, pl_module.prepare, pl_module.accumulate_gradients
        self.before, self.steps_before = weights_of(method), method.counters.optimizer_steps

        def prepared(batch: Any) -> Any:
            found = prepare(batch)
            self.hashes |= {"rows": tokens_hash(batch), "samples": tokens_hash(found)}
            return found

        def accumulated(minibatch: Any, count: Tensor) -> None:
            accumulate(minibatch, count)
            if not self.gradient:
                self.hashes["first_step"] = tokens_hash(minibatch)
                self.gradient = {
                    name: torch.zeros_like(p, device="cpu", dtype=torch.float32) if p.grad is None else _copy(p.grad)
                    for name, p in method.named_parameters()
                    if p.requires_grad
                }

        vars(method).update(prepare=prepared, accumulate_gradients=accumulated)

    def trace(self, method: Method) -> UpdateTrace:
        """The record of the finished update."""
        after = weights_of(method)
        return UpdateTrace(
            gradient=self.gradient,
            step={name: value - self.before[name] for name, value in after.items()},
            loss=method.last_metrics.get("loss", math.nan),
            optimizer_steps=method.counters.optimizer_steps - self.steps_before,
            **self.hashes,
        )


def weights_of(method: Method) -> dict[str, Tensor]:
    """A copy of the trained weights."""
    return {name: _copy(parameter) for name, parameter in method.named_parameters() if parameter.requires_grad}


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True)


def tokens_hash(value: Any) -> str:
    """A hash of all integers in a batch, except truth values: token ids and row numbers."""
    found = hashlib.blake2b(digest_size=8)
    for part in _integers(value):
        found.update(part)
    return found.hexdigest()


def _integers(value: Any) -> Iterator[bytes]:
    if isinstance(value, Tensor):
        if not value.is_floating_point() and value.dtype != torch.bool:
            yield value.cpu().numpy().tobytes()
    elif isinstance(value, int) and not isinstance(value, bool):
        yield str(value).encode()
    elif is_dataclass(value):
        for each in fields(value):
            yield from _integers(getattr(value, each.name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _integers(item)
