"""The `trainer` group: devices, ranks and precision. Only the precision changes a number."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelSummary, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import AdvancedProfiler, Profiler, SimpleProfiler
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy

from postrain.processor import warn_if_slow
from postrain.types import ConfigError, Count, Workers

# Lightning's name for each, and the type the weights are kept in.
PRECISIONS: dict[str, tuple[Any, torch.dtype]] = {
    "fp32": ("32-true", torch.float32),
    "bf16-mixed": ("bf16-mixed", torch.float32),
    # Lightning is told nothing: its own bf16 changes the default type of every tensor that is made.
    "bf16": ("32-true", torch.bfloat16),
}
# How Lightning's Trainer is imported.
LIGHTNING_TRAINER = re.compile(r"(lightning|lightning\.pytorch|pytorch_lightning)(\.trainer){0,2}\.Trainer")
LIGHTNING_DEFAULTS: Mapping[str, Any] = {
    name: each.default for name, each in inspect.signature(Trainer).parameters.items()
}
"""The options of Lightning's Trainer with its defaults."""
# What a run does by itself, said to Lightning's Trainer: it need not be said, and may be.
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
# Lightning's values, and what they are called here.
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
    """Devices, how ranks share the work, and the precision."""

    accelerator: Literal["cpu", "gpu"] = "cpu"
    """What the ranks compute on."""
    devices: Workers = 1
    """Ranks on each node."""
    num_nodes: Workers = 1
    """Machines; more than one needs torchrun or Slurm."""
    strategy: Literal["single", "ddp", "fsdp"] = "single"
    """single is one process; ddp puts a copy of the model on every rank; fsdp shards weights, gradients and optimizer
    state over the ranks (PyTorch's fully_shard)."""
    precision: Literal["fp32", "bf16-mixed", "bf16"] = "fp32"
    """fp32, bf16-mixed (autocast) or bf16 (weights too). fp16 is not offered: it gives NaN on a CPU and loses the small
    log-ratios these methods need."""
    threads: Workers | None = None
    """CPU threads of a rank; null leaves the choice to PyTorch, divided by the ranks of the node."""
    checkpoint_every: Count = 20
    """Updates between checkpoints: what a kill -9 can lose."""
    checkpoints_kept: Count = 2
    """Newest checkpoints that stay on disk."""
    profiler: Literal["simple", "advanced"] | None = None
    """Lightning's profiler: simple times its hooks, advanced every function. Writes fit-profile.txt into the folder."""
    detect_anomaly: bool = False
    """Whether autograd names the operation whose gradient is NaN; slow."""
    deterministic: bool = False
    """Whether PyTorch may use deterministic algorithms only, which a GPU does not by itself."""

    @classmethod
    def translate_config(cls, node: Mapping[str, Any]) -> dict[str, Any]:
        """A node of Lightning's Trainer, or one of this class in Lightning's words, in the words of this class.

        What Lightning does by default is left out, and so is what a run does anyway. Options that a run decides by
        itself stay, without a value: check.py answers each with the key that does it here (habits.py).
        """
        own, told = f"{cls.__module__}.{cls.__qualname__}", {str(name): value for name, value in node.items()}
        if LIGHTNING_TRAINER.fullmatch(str(told["_target_"])):
            told = {"accelerator": "auto", "devices": "auto", "strategy": "auto", **told, "_target_": own}
            told = {name: value for name, value in told.items() if not _has_no_effect(name, value)}
            if told.get("precision") == "bf16":
                told["precision"] = "bf16-mixed"
        if told["_target_"] != own:
            return told
        for name, called in LIGHTNING_NAMES.items():
            if isinstance(told.get(name), str | int):
                told[name] = called.get(told[name], told[name])
        known = {each.name for each in fields(cls)}
        return _resolve_auto({name: None if name in LIGHTNING_DEFAULTS.keys() - known else told[name] for name in told})

    @property
    def ranks(self) -> int:
        """Processes over all nodes."""
        return self.devices * self.num_nodes

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are kept in."""
        return PRECISIONS[self.precision][1]

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        return torch.device(self.accelerator.replace("gpu", "cuda"), int(os.environ.get("LOCAL_RANK", 0)))

    def check(self) -> None:
        """Raises ConfigError for devices that this machine does not have."""
        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise ConfigError("trainer: no GPU is visible to PyTorch here; use trainer=cpu (or trainer=ddp_cpu)")
        if self.accelerator == "gpu" and torch.cuda.device_count() < self.devices:
            raise ConfigError(f"trainer.devices={self.devices}, but only {torch.cuda.device_count()} GPUs are visible")
        if self.strategy == "single" and self.ranks > 1:
            raise ConfigError(f"trainer.strategy=single runs one process, not {self.ranks}; use trainer=ddp or fsdp")

    def configure_process(self) -> None:
        """What belongs to the process, before anything is computed: later threads take it over from this one.

        Numbers below 1e-38 count as 0. The softmax of a model that is sure of its next token is full of them, and a CPU
        is a hundred times slower with them: a DPO step on the bundled model takes 0.3 s instead of 2.
        """
        torch.set_flush_denormal(True)
        if self.accelerator == "cpu" and self.precision != "fp32":
            warn_if_slow("trainer.precision", torch.bfloat16)
        if self.threads is not None:
            torch.set_num_threads(self.threads)

    def make_trainer(self, callbacks: Sequence[Callback], loggers: Sequence[Logger], root: Path) -> Trainer:
        """A Trainer that only drives: one epoch is the whole run, and batches come sharded already.

        Callbacks evaluate and write metrics (training/evaluation.py, record_files.py), so that an evaluation stands in
        the record of its update and before its checkpoint; Lightning would do either after both, and once more.
        """

        def has(kind: type[Callback]) -> bool:
            return any(isinstance(one, kind) for one in callbacks)

        return Trainer(
            accelerator=self.accelerator,
            devices=self.devices,
            num_nodes=self.num_nodes,
            strategy=self._strategy(),
            precision=PRECISIONS[self.precision][0],
            callbacks=list(callbacks),
            logger=list(loggers),
            default_root_dir=root,
            max_epochs=1,
            use_distributed_sampler=False,
            log_every_n_steps=1,
            limit_val_batches=0,
            # Lightning's callbacks then act after an evaluation, not at the end of an epoch.
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
        return ModelParallelStrategy(
            data_parallel_size=self.ranks, tensor_parallel_size=1, save_distributed_checkpoint=False
        )


def _has_no_effect(name: str, value: Any) -> bool:
    """Whether an option of Lightning's Trainer asks for nothing that a run does not do: also the folder that templates
    refer to, ${paths.output_dir}."""
    if name == "default_root_dir":
        return isinstance(value, str) and value.startswith("${")
    settled = [table[name] for table in (LIGHTNING_DEFAULTS, FIXED_OPTIONS) if name in table]
    return value is None or (value != "auto" and value in settled)


def _resolve_auto(told: dict[str, Any]) -> dict[str, Any]:
    """What `auto` finds on this machine."""
    if told.get("accelerator") == "auto":
        told["accelerator"] = "gpu" if torch.cuda.is_available() else "cpu"
    if told.get("devices") in ("auto", -1, "-1"):
        told["devices"] = torch.cuda.device_count() if told.get("accelerator") == "gpu" else 1
    elif str(told.get("devices")).isdecimal():
        told["devices"] = int(told["devices"])
    if told.get("strategy") == "auto":
        told["strategy"] = "single" if (told.get("devices", 1), told.get("num_nodes", 1)) == (1, 1) else "ddp"
    return told
