"""The `trainer` group: devices, ranks and precision. Only the precision changes results."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelSummary, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import AdvancedProfiler, Profiler, SimpleProfiler
from lightning.pytorch.strategies import DDPStrategy, Strategy

from postrain.errors import ConfigError
from postrain.hardware import mps
from postrain.hardware.checkpoint_io import FileCheckpointIO
from postrain.hardware.environment import check_ranks
from postrain.hardware.optimizer_state import ShardedStrategy
from postrain.processor import warn_if_slow
from postrain.types import Count, Workers

# Lightning's name of each precision, and the dtype of the weights.
PRECISIONS: dict[str, tuple[Any, torch.dtype]] = {
    "fp32": ("32-true", torch.float32),
    "bf16-mixed": ("bf16-mixed", torch.float32),
    # Not Lightning's "bf16-true", which changes the default dtype of every new tensor.
    "bf16": ("32-true", torch.bfloat16),
}
# The import paths of Lightning's Trainer.
LIGHTNING_TRAINER = re.compile(r"(lightning|lightning\.pytorch|pytorch_lightning)(\.trainer){0,2}\.Trainer")
LIGHTNING_DEFAULTS: Mapping[str, Any] = {
    name: each.default for name, each in inspect.signature(Trainer).parameters.items()
}
"""The options of Lightning's Trainer with their defaults."""
# Options of Lightning's Trainer that every run sets to these values; a config may repeat them.
FIXED_OPTIONS: Mapping[str, Any] = {
    "enable_checkpointing": True,
    "enable_progress_bar": True,
    "enable_model_summary": False,
    "log_every_n_steps": 1,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,
    "gradient_clip_algorithm": "norm",
    "benchmark": False,
    "deterministic": False,
}
# Lightning's values and their names here.
LIGHTNING_NAMES: Mapping[str, Mapping[Any, str]] = {
    "accelerator": {"cuda": "gpu"},
    "strategy": {
        "single_device": "single",
        "ddp_find_unused_parameters_true": "ddp",
        "ddp_find_unused_parameters_false": "ddp",
        "ddp_spawn": "ddp",
    },
    "precision": {32: "fp32", "32": "fp32", "32-true": "fp32", "bf16-true": "bf16"},
}


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Devices, distributed strategy and precision."""

    accelerator: Literal["cpu", "gpu", "mps"] = "cpu"
    """Device type: cpu, gpu (CUDA) or mps (the GPU of an Apple computer; without one the CPU, with a warning)."""
    devices: Workers = 1
    """Ranks per node."""
    num_nodes: Workers = 1
    """Number of nodes; more than one needs torchrun or srun."""
    strategy: Literal["single", "ddp", "fsdp"] = "single"
    """single: one process. ddp: a copy of the model on every rank. fsdp: weights, gradients and optimizer state sharded
    over the ranks (PyTorch's fully_shard)."""
    reshard_after_forward: bool = True
    """With strategy=fsdp, free the gathered weights of a block between its forward and backward pass while gradients
    are computed (ZeRO-3). false keeps those of all blocks until the backward pass (ZeRO-2): less communication, more
    memory."""
    shard_size: Workers | None = None
    """With strategy=fsdp, the consecutive ranks that one copy of the model is sharded over, such as those of a node;
    gradients are then summed over the copies (HSDP). null is all ranks."""
    precision: Literal["fp32", "bf16-mixed", "bf16"] = "fp32"
    """fp32, bf16-mixed (fp32 weights, bf16 autocast) or bf16 (bf16 weights). fp16 is not supported: it gives NaN on a
    CPU and loses small log-ratios."""
    master_weights: bool = True
    """Keep float32 copies of trained bf16 weights in the optimizer, which takes the steps there: 18 bytes per trained
    parameter with AdamW. false takes 8 and trains the bf16 weights themselves: steps below 1/512 of a weight are lost,
    which is most of them at learning rates of fine-tuning. No effect on fp32 weights, such as those of LoRA."""
    reference_precision: Literal["bf16"] | None = None
    """Precision of a frozen reference policy; null is that of the policy. bf16 halves the memory of a float32 one and
    adds rounding to log-ratios and KL. No effect where the reference is the policy with its adapter disabled, and on
    precomputed log-probabilities of the initial policy."""
    float32_matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """Precision of float32 matrix products (torch.set_float32_matmul_precision). high (TF32 on GPUs) and medium (bf16)
    are several times as fast and round inputs to 11 and 8 bits: log-probabilities change by about 1e-3 and more, so
    methods recompute those of the sampler and expect agreement within the bounds of bf16 only. bf16-mixed and bf16 gain
    little."""
    check_memory: bool = True
    """Refuse to start a run whose estimated memory exceeds what is available."""
    threads: Workers | None = None
    """CPU threads per rank; null is PyTorch's default, divided by the ranks of the node."""
    checkpoint_every: Count = 20
    """Updates between checkpoints; a killed run loses at most this many."""
    checkpoints_kept: Count = 2
    """Number of newest checkpoints to keep on disk."""
    profiler: Literal["simple", "advanced"] | None = None
    """Lightning's profiler: simple times hooks, advanced times every function. Writes fit-profile.txt to the run
    folder."""
    detect_anomaly: bool = False
    """Whether autograd names the operation whose gradient is NaN; slow."""
    deterministic: bool = False
    """Use deterministic PyTorch algorithms only; matters on a GPU."""

    @classmethod
    def translate_config(cls, node: Mapping[str, Any]) -> dict[str, Any]:
        """Translates a config node of Lightning's Trainer, or of this class with Lightning's values, to this class.

        Drops options at Lightning's default or at the value every run uses. Other options that have no key here stay
        with the value None, so that check.py can name the key to use instead (foreign_keys.py).
        """
        own, options = f"{cls.__module__}.{cls.__qualname__}", {str(name): value for name, value in node.items()}
        if LIGHTNING_TRAINER.fullmatch(str(options["_target_"])):
            options = {"accelerator": "auto", "devices": "auto", "strategy": "auto", **options, "_target_": own}
            options = {name: value for name, value in options.items() if not _has_no_effect(name, value)}
            if options.get("precision") == "bf16":
                options["precision"] = "bf16-mixed"
        if options["_target_"] != own:
            return options
        for name, names in LIGHTNING_NAMES.items():
            if isinstance(options.get(name), str | int):
                options[name] = names.get(options[name], options[name])
        known = {each.name for each in fields(cls)}
        return _resolve_auto(
            {name: None if name in LIGHTNING_DEFAULTS.keys() - known else options[name] for name in options}
        )

    @property
    def ranks(self) -> int:
        """Number of processes on all nodes."""
        return self.devices * self.num_nodes

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return PRECISIONS[self.precision][1]

    @property
    def gathered_dtype(self) -> torch.dtype | None:
        """The dtype in which sharded weights are gathered; None is their own."""
        return torch.bfloat16 if self.precision == "bf16-mixed" else None

    def autocast(self) -> AbstractContextManager[Any]:
        """Autocast as Lightning's precision plugin uses it, for computations before training."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed")

    @property
    def shards(self) -> int:
        """Number of ranks that a copy of the model is divided over."""
        return (self.shard_size or self.ranks) if self.strategy == "fsdp" else 1

    @property
    def available(self) -> Literal["cpu", "gpu", "mps"]:
        """The accelerator of this run: `accelerator`, or cpu for mps on a machine without an Apple GPU."""
        return "cpu" if self.accelerator == "mps" and mps.missing_reason() else self.accelerator

    @property
    def device(self) -> torch.device:
        """The device of this rank."""
        if self.available == "cpu":
            # Without an index: tensors have none, and fake tensors of cpu and cpu:0 are refused together.
            return torch.device("cpu")
        return torch.device(self.available.replace("gpu", "cuda"), int(os.environ.get("LOCAL_RANK", 0)))

    def check(self) -> None:
        """Raises ConfigError for devices that this machine does not have, and for other ranks than were started."""
        check_ranks(self.devices, self.num_nodes)
        if self.accelerator == "gpu" and not torch.cuda.is_available():
            other = "trainer=cpu (or trainer=ddp_cpu)" if mps.missing_reason() else "trainer=mps"
            raise ConfigError(f"trainer: no CUDA GPU is visible to PyTorch here; use {other}")
        if self.accelerator == "gpu" and torch.cuda.device_count() < self.devices:
            raise ConfigError(f"trainer.devices={self.devices}, but only {torch.cuda.device_count()} GPUs are visible")
        if self.accelerator == "mps" and (self.ranks > 1 or self.strategy != "single"):
            raise ConfigError(
                f"trainer: an Apple GPU is one device, got {self.ranks} ranks with strategy={self.strategy}; use "
                "trainer.devices=1 trainer.strategy=single"
            )
        if self.available == "mps" and self.precision != "fp32" and not mps.supports_bf16():
            raise ConfigError(
                f"trainer.precision={self.precision}: Apple GPUs need macOS {mps.BF16_MACOS[0]} or newer for bf16; use "
                "trainer.precision=fp32"
            )
        if self.shard_size and (self.strategy != "fsdp" or self.ranks % self.shard_size):
            wanted = f"expected strategy=fsdp and a divisor of {self.ranks} ranks"
            raise ConfigError(f"trainer.shard_size={self.shard_size}: {wanted}; set trainer.shard_size=null")
        if self.strategy == "single" and self.ranks > 1:
            raise ConfigError(f"trainer.strategy=single: got {self.ranks} processes; use trainer=ddp, fsdp or ddp_cpu")

    def configure_process(self) -> None:
        """Process-wide settings, made before any computation, since later threads inherit them.

        Flushes denormals (below 1e-38) to zero. The softmax of a confident model is full of them, and a CPU is a
        hundred times slower with them: a DPO step on the bundled model takes 0.3 s instead of 2 s.
        """
        torch.set_flush_denormal(True)
        if self.available != self.accelerator:
            print(f"warning: trainer=mps: {mps.missing_reason()}; running on the CPU", file=sys.stderr)
        if self.available == "cpu" and self.precision != "fp32":
            warn_if_slow("trainer.precision", torch.bfloat16)
        torch.set_float32_matmul_precision(self.float32_matmul_precision)
        if self.threads is not None:
            torch.set_num_threads(self.threads)

    def make_trainer(self, callbacks: Sequence[Callback], loggers: Sequence[Logger], root: Path) -> Trainer:
        """A Lightning Trainer in which one epoch is the whole run and batches are sharded already.

        Callbacks evaluate and write metrics (training/evaluation.py, record_files.py), so that an evaluation is part of
        its update's record and precedes its checkpoint. Lightning's own validation would run after both.
        """

        def has(kind: type[Callback]) -> bool:
            return any(isinstance(one, kind) for one in callbacks)

        return Trainer(
            accelerator=self.available,
            devices=self.devices,
            num_nodes=self.num_nodes,
            strategy=self._strategy(),
            precision=PRECISIONS[self.precision][0],
            callbacks=list(callbacks),
            # Lightning's own detection takes a Slurm job of one task for a run of one rank.
            plugins=[FileCheckpointIO(), LightningEnvironment()],
            logger=list(loggers),
            default_root_dir=root,
            max_epochs=1,
            use_distributed_sampler=False,
            log_every_n_steps=1,
            limit_val_batches=0,
            # Makes Lightning's callbacks act after an evaluation instead of at the end of an epoch.
            val_check_interval=1,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            enable_checkpointing=has(Checkpoint),
            enable_progress_bar=has(ProgressBar),
            enable_model_summary=has(ModelSummary),
            profiler=self._profiler(root),
            detect_anomaly=self.detect_anomaly,
            deterministic=self.deterministic or None,
        )

    def _profiler(self, root: Path) -> Profiler | None:
        kinds: dict[str | None, type[Any]] = {"simple": SimpleProfiler, "advanced": AdvancedProfiler}
        return kinds[self.profiler](dirpath=root, filename="profile") if self.profiler else None

    def _strategy(self) -> Strategy | str:
        if self.strategy == "single":
            return "auto"
        if self.strategy == "ddp":
            return DDPStrategy(process_group_backend="gloo" if self.accelerator == "cpu" else "nccl")
        return ShardedStrategy(self.ranks, self.shards, reshard_after_forward=self.reshard_after_forward)


@contextmanager
def matmul_precision_restored() -> Iterator[None]:
    """Restores the precision of float32 matrix products after the block, for callers in Python."""
    before = torch.get_float32_matmul_precision()
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _has_no_effect(name: str, value: Any) -> bool:
    """Whether an option of Lightning's Trainer changes nothing here: a default, a value every run uses, or the output
    folder of templates, ${paths.output_dir}."""
    if name == "default_root_dir":
        return isinstance(value, str) and value.startswith("${")
    values = [table[name] for table in (LIGHTNING_DEFAULTS, FIXED_OPTIONS) if name in table]
    return value is None or (value != "auto" and value in values)


def _resolve_auto(options: dict[str, Any]) -> dict[str, Any]:
    """Replaces `auto` by the devices of this machine."""
    if options.get("accelerator") == "auto":
        options["accelerator"] = "gpu" if torch.cuda.is_available() else "cpu" if mps.missing_reason() else "mps"
    if options.get("devices") in ("auto", -1, "-1"):
        options["devices"] = torch.cuda.device_count() if options.get("accelerator") == "gpu" else 1
    elif str(options.get("devices")).isdecimal():
        options["devices"] = int(options["devices"])
    if options.get("strategy") == "auto":
        options["strategy"] = "single" if (options.get("devices", 1), options.get("num_nodes", 1)) == (1, 1) else "ddp"
    return options
