"""The config of a training run: its keys, their types and defaults, and the checks across keys."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Annotated

import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger

from postrain.config.paths import CONF
from postrain.config.schema import TARGET, Confirm, Deferred, Paths, Section, SuppliedArguments
from postrain.config.tree import leave_out, record
from postrain.data.module import DataModule
from postrain.errors import ConfigError
from postrain.evaluation.evaluator import Evaluation
from postrain.hardware.memory import total_memory
from postrain.hardware.trainer import Hardware
from postrain.methods.base import Method
from postrain.methods.learning_rates import describe, resolve
from postrain.methods.teacher import is_url
from postrain.models.adapters import Adapter, NoAdapter
from postrain.models.loading import model_config
from postrain.models.size import micro_batch_tokens, size_of, training_bytes
from postrain.models.sources import ModelSource, ResolvedModel
from postrain.rewards.base import PreferenceModel, Reward, scores_completions
from postrain.rollout.engine import Engine
from postrain.rollout.environment import SINGLE_TURN, Environment
from postrain.rollout.local import LocalEngine
from postrain.training.early_stopping import EarlyStop
from postrain.training.loggers import LightningTracker, NoTracker, Tracker
from postrain.types import Seed


def is_local(reference: object) -> bool:
    """Whether a reference is a model on this machine or the Hub."""
    return not is_url(str(reference))


MAX_TOKENS = 10**9
"""Limit on the completion tokens of one update; their ids and log-probabilities take about 12 GB."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Section):
    """A training run. Raises ConfigError for incompatible settings."""

    method: Method
    """The training method and its hyperparameters."""
    model: ModelSource
    """The initial model."""
    adapter: Adapter = field(default_factory=NoAdapter)
    """An adapter (LoRA, QLoRA) on the model; none trains all weights."""
    data: DataModule
    """Training rows and held-out rows."""
    reward: Deferred[Reward | PreferenceModel] | None = None
    """Scores or compares completions; required by methods that sample."""
    rollout: Engine = field(default_factory=LocalEngine)
    """The engine that samples completions, and its sampling parameters."""
    environment: Environment = SINGLE_TURN
    """The environment of multi-turn rollouts, such as tools."""
    trainer: Hardware = field(default_factory=Hardware)
    """Hardware: processes, devices and precision."""
    logger: Tracker | Logger = field(default_factory=NoTracker)
    """Tracker that receives a copy of metrics.jsonl and samples.jsonl."""
    callbacks: Mapping[str, Callback] = field(default_factory=dict)
    """Lightning callbacks, under names of your choice. An evaluation is a validation to them; its metrics can be
    monitored."""
    optim: Annotated[Deferred[torch.optim.Optimizer] | None, SuppliedArguments({"params", "lr", "weight_decay"})] = None
    """A torch optimizer; null is AdamW. Learning rate, schedule and weight decay are keys of the method. Default
    learning rates are AdamW's: keep them with muon and adamw_8bit, multiply by about 10 with adafactor, whose steps are
    relative to the root mean square of a matrix, and search the rate of sgd."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    """Evaluation on held-out rows: interval, completions and tasks."""
    early_stop: EarlyStop = field(default_factory=EarlyStop)
    """Early stopping; a stopped run is still evaluated and exported."""
    seed: Seed = 0
    """Seed of the row order, of sampling and of new weights."""
    reference: Annotated[str | None, Confirm("sends prompts and completions there", harmless=is_local)] = None
    """Reference model for KL and log-ratios, and teacher of method=distill: a directory, run folder, Hub name or option
    of `model`. null is the initial policy; `self`, for a teacher with another prompt, too. A teacher may be the URL of
    a vLLM server. `teacher` is another name of this key."""
    dialect: str | None = None
    """The library whose loss the method has, and the method, such as trl/grpo; set by dialect=trl, verl or openrlhf. It
    is a record: the settings are those of `method`."""
    name: str | None = None
    """Name of the run in its folder and in trackers; null is the method's name."""
    resume: str | None = None
    """Run folder to resume, such as runs/ppo/nano/...; `auto` is the newest run of this `name` that has a checkpoint,
    or a new run without one."""
    fork: str | None = None
    """RUN@UPDATE: start a new run that shares the past of the run in the folder RUN up to this update, bit for bit, and
    continues with its settings and those of the command line. Without a checkpoint of the update, the updates since the
    last one before it are repeated. 0 shares the initial weights only."""
    allow_change: bool = False
    """Allow a resumed run to continue with other settings or other rows."""
    report: bool = True
    """Write report.html at the end of the run."""
    debug: bool = False
    """Show tracebacks of errors."""
    paths: Paths = field(default_factory=Paths)
    """Where run folders are created."""

    def __post_init__(self) -> None:
        method = self.method
        sizes = {
            "method.batch_size": method.batch_size,
            "method.group_size": getattr(method, "group_size", 1),
            "rollout.max_new_tokens": self.rollout.sampling.max_new_tokens,
        }
        # Each size is valid alone; their product may not fit any memory.
        if method.samples and math.prod(sizes.values()) > MAX_TOKENS:
            product = " × ".join(f"{key}={size}" for key, size in sizes.items() if size > 1)
            raise ConfigError(f"{product}: expected at most {MAX_TOKENS} tokens per update; lower one of them")
        self._check_early_stop()
        if self.optim is not None:
            own = [key for key in ("adam_betas", "adam_eps") if getattr(method, key) != getattr(type(method), key)]
            if own:
                name = self.optim.target.__name__
                raise ConfigError(
                    f"method.{own[0]}: is used by the default optimizer alone, and optim is {name}; set it under "
                    "optim, or leave out one of them"
                )
        if self.dialect is not None and "/" not in self.dialect:
            covered = sorted(file.stem for file in (CONF / "dialect" / self.dialect).glob("*.yaml"))
            raise ConfigError(
                f"dialect={self.dialect}: has no loss for this method; it has one for {', '.join(covered) or 'none'}; "
                "choose one of them with method=, or leave out the dialect"
            )
        # In Python the method has its teacher itself.
        if not hasattr(method, "components"):
            method.check_teacher(self.reference)

    def _check_early_stop(self) -> None:
        """Raises ConfigError for a limit on a metric that the run does not measure."""
        method, stop = self.method, self.early_stop
        if stop.flat_updates and not method.needs_reward:
            raise ConfigError("early_stop.flat_updates: this method has no reward; set it to null")
        if stop.flat_updates and self.reward and not scores_completions(self.reward.target):
            raise ConfigError("early_stop.flat_updates: this reward only compares completions; set it to null")
        if stop.kl_above is None or method.logs_kl():
            return
        if method.head != "causal":
            raise ConfigError("early_stop.kl_above: this method generates no text, so there is no KL; set it to null")
        if not self.evaluation.completions:
            raise ConfigError(
                "early_stop.kl_above: this method logs no KL in training, and evaluation.completions=0; give "
                "evaluation.completions=64, or set it to null"
            )

    def check(self) -> None:
        """Completes the settings that depend on the model. Raises ConfigError if the machine or a component cannot run.
        Called before the run folder is created."""
        self.trainer.check()
        self.adapter.quantization()
        for task in self.evaluation.tasks.values():
            assert task.value
        has_reference = self.method.head == "causal" and self.reference is None and self.evaluation.completions
        if self.method.learning_rate == "auto" and self.trainer.strategy == "fsdp" and not has_reference:
            raise ConfigError(
                "method.learning_rate=auto: with trainer.strategy=fsdp, trials need the initial policy as reference: a "
                "language model, reference=null and evaluation.completions above 0; leave it out for the default, "
                f"{self.default_learning_rate:g}, or give a rate"
            )
        if (rate := resolve(self.method.learning_rate, self.default_learning_rate)) != self.method.learning_rate:
            self.method.learning_rate = rate
            record(self, "method", "learning_rate", rate)
        if self.method.micro_batch_tokens is None:
            self.method.micro_batch_tokens = self.micro_batch_tokens
            record(self, "method", "micro_batch_tokens", self.micro_batch_tokens)
        if self.method.num_train_epochs is not None:
            leave_out(self, "method", "updates")

    @cached_property
    def default_learning_rate(self) -> float:
        """The method's learning rate for this model and adapter."""
        adapter, resolved = not isinstance(self.adapter, NoAdapter), self.resolved
        return self.method.learning_rates().for_model(
            size_of(resolved), adapter=adapter, from_scratch=resolved.from_scratch
        )

    @cached_property
    def micro_batch_tokens(self) -> int:
        """The tokens of a micro-batch: the setting, or the default for this model on this device."""
        method, hardware = self.method, self.trainer
        if method.micro_batch_tokens is not None:
            return method.micro_batch_tokens
        shape, memory = model_config(self.resolved, method.head), total_memory(hardware.device)
        dtype = torch.bfloat16 if hardware.precision.startswith("bf16") else torch.float32
        return micro_batch_tokens(
            shape,
            on_gpu=hardware.accelerator == "gpu",
            most=method.most_micro_batch_tokens,
            dtype=dtype,
            memory=memory,
            state_bytes=self._state_bytes,
            devices=hardware.devices,
            checkpointing=method.gradient_checkpointing,
        )

    @property
    def _state_bytes(self) -> float:
        """Bytes of the weights of policy and reference, gradients and optimizer on each rank."""
        size, dtype = size_of(self.resolved), self.trainer.dtype
        full = isinstance(self.adapter, NoAdapter)
        reference = size * dtype.itemsize if full and self.method.needs_reference() else 0
        total = training_bytes(size, size if full else 0, dtype) + reference
        return total / self.trainer.shards

    @property
    def learning_rate_line(self) -> str:
        """The learning rate, the model's size, and the default rate where another one is set, for the console."""
        adapter, size = not isinstance(self.adapter, NoAdapter), size_of(self.resolved)
        default, rate = self.default_learning_rate, self.method.learning_rate
        return describe(rate or default, parameters=size, adapter=adapter, default=default)

    @property
    def tracker(self) -> Tracker:
        """The logger behind the Tracker interface, which closes with the run's exit status."""
        return LightningTracker(self.logger) if isinstance(self.logger, Logger) else self.logger

    @property
    def make_optimizer(self) -> Callable[..., torch.optim.Optimizer] | None:
        """Constructs the optimizer from parameter groups and `lr`; None is AdamW."""
        if self.optim is None:
            return None
        settings = {name: value for name, value in (self.optim.settings or {}).items() if name != TARGET}
        return partial(self.optim.target, **settings)

    @cached_property
    def resolved(self) -> ResolvedModel:
        """The model to train."""
        return self.model.resolve()

    @property
    def label(self) -> str:
        """The first part of the run's folder."""
        return self.name or type(self.method).__name__.lower()
