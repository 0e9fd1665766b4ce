"""The reference policy of a run, and where its weights are while training.

A method whose loss needs the reference at every update keeps a frozen copy. All others need it before the first update
(precomputed log-probabilities) and for the KL of evaluated completions: they read it from the model's files for that
time, so training holds one copy of the weights. The ranks of a sharded run read their own shards.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
import transformers
from torch import nn
from torch.distributed.fsdp import FSDPModule

from postrain.errors import ConfigError
from postrain.hardware.sharding import device_mesh, shard
from postrain.methods.teacher import is_url
from postrain.models.adapters import NoAdapter
from postrain.models.by_name import resolve_by_name
from postrain.models.directory import fingerprint
from postrain.models.loading import load_causal, load_tokenizer
from postrain.models.parts import size_in_bytes
from postrain.models.reference import Reference
from postrain.models.sharded_loading import load_sharded
from postrain.models.sources import ResolvedModel
from postrain.training.config import TrainConfig
from postrain.types import Head

SELF = "self"
"""The reference that is the initial policy itself, for a teacher with another prompt."""
# A smaller policy has a frozen copy in memory: reading it for every evaluation would take longer than it is worth.
READ_FROM = 2**28


def resolve_reference(config: TrainConfig, tokenizer: Any) -> ResolvedModel | None:
    """The model that the key `reference` names, if any. Raises ConfigError for a reward model or another vocabulary."""
    path = config.reference
    if path is None or path == SELF or is_url(path):
        return None
    key = "teacher" if config.method.needs_teacher else "reference"
    found = resolve_by_name(key, path, "a run folder, a directory, a Hub name")
    if "scalar" in (config.method.head, found.head):
        who = "this method" if config.method.head == "scalar" else "a reward model"
        raise ConfigError(f"{key}={path}: {who} has no log-probabilities to compare; remove it")
    theirs, ours = load_tokenizer(found).get_vocab(), tokenizer.get_vocab()
    if theirs != ours and not getattr(config.method, "cross_tokenizer", False):
        remedy = ", or set method.cross_tokenizer=true" if key == "teacher" else ""
        raise ConfigError(
            f"{key}={path}: its vocabulary ({len(theirs)} tokens) differs from the policy's ({len(ours)}); "
            f"log-probabilities need the same tokens: give a model of the same family{remedy}"
        )
    return found


def reference_fingerprint(config: TrainConfig, model: ResolvedModel) -> str:
    """A key of everything but the rows that determines log-probabilities under `model`, the reference of this run."""
    hardware = config.trainer
    weights = f"{model.fingerprint} {model.from_scratch} {model.resize} {config.adapter.quantization()}"
    if hardware.reference_precision and config.reference is not None:
        weights += f" {hardware.reference_precision}"
    if hardware.float32_matmul_precision != "highest":
        weights += f" {hardware.float32_matmul_precision}"
    return f"{weights} {hardware.precision} {hardware.available} {torch.__version__} {transformers.__version__}"


def build_reference(
    config: TrainConfig, policy: nn.Module, other: ResolvedModel | None, *, saved: bool = True
) -> Reference | None:
    """The reference policy, if the method or the KL of evaluated completions needs one.

    `other` is the model that the key `reference` names; `saved` is False for a policy given in Python.
    """
    method, sharded = config.method, isinstance(policy, FSDPModule)
    dtype, moves = next(policy.parameters()).dtype, moving_reference(config)
    # A moving reference is a copy of its own; evaluations compare with the initial policy.
    needed = method.needs_reference() and not moves
    if other is not None:
        load = partial(load_frozen, config, other, config.trainer.dtype)
        description = f"reference: {other.name} ({config.reference})"
        return Reference(policy, load() if needed else None, load=load, description=description)
    load = partial(load_frozen, config, config.resolved, dtype)
    if needed:
        # A sharded model cannot be copied.
        return Reference.for_policy(policy, load() if sharded else None)
    if not moves and (method.head != "causal" or not config.evaluation.completions):
        return None
    if not sharded and (
        hasattr(policy, "disable_adapter") or size_in_bytes(policy) < READ_FROM or not (saved or gives(load, policy))
    ):
        return Reference.for_policy(policy)
    description = "reference: the initial policy, read from its files for each evaluation"
    return Reference(policy, load=load, description=description)


def moving_reference(config: TrainConfig) -> bool:
    """Whether the loss has a reference of its own, which follows the policy (TR-DPO)."""
    return bool(getattr(config.method, "ref_sync_steps", 0))


def reads_shards(config: TrainConfig) -> bool:
    """Whether each rank may read only its own shards of a model.

    Adapters choose the embeddings to train, and some their initial weights, by the weights; a separate critic and a
    moving reference are copies of the whole model.
    """
    method, hardware = config.method, config.trainer
    copies = getattr(method, "critic", "shared") == "separate" or moving_reference(config)
    return hardware.strategy == "fsdp" and isinstance(config.adapter, NoAdapter) and not copies


def load_shards(config: TrainConfig, resolved: ResolvedModel, head: Head, dtype: torch.dtype) -> nn.Module | None:
    """A model of a sharded run with this rank's shards only; None if it has to be loaded whole."""
    # Without a process group the run only measures (--dry-run).
    if not (reads_shards(config) and dist.is_initialized()):
        return None
    hardware = config.trainer
    mesh = device_mesh(hardware.device.type, hardware.ranks, hardware.shards)
    change = partial(shard, mesh=mesh, compute_dtype=hardware.gathered_dtype)
    return load_sharded(resolved, head, dtype=dtype, shard=change)


def load_frozen(config: TrainConfig, resolved: ResolvedModel, dtype: torch.dtype) -> nn.Module:
    """The model without adapter, sharded or on the CPU. Raises ConfigError if its files have changed."""
    directories = (resolved.directory, *resolved.adapters)
    if not all(path.is_dir() for path in directories) or fingerprint(*directories) != resolved.fingerprint:
        raise ConfigError(
            f"reference: the files in {directories[-1]} changed during the run; restore them and resume, or set "
            "evaluation.completions=0"
        )
    # Not in the precision of the evaluation around it: loading compares outputs of the model.
    with torch.autocast(config.trainer.device.type, enabled=False):
        found = load_shards(config, resolved, "causal", dtype) or cast("nn.Module", load_causal(resolved, dtype=dtype))
    return found.requires_grad_(False)


def gives(load: Callable[[], nn.Module], policy: nn.Module) -> bool:
    """Whether `load` gives the policy, bit for bit."""
    try:
        loaded = load()
    except ConfigError:
        return False
    mine, theirs = policy.state_dict(), loaded.state_dict()
    same = type(loaded) is type(policy) and mine.keys() == theirs.keys()
    return same and all(
        value.dtype == theirs[name].dtype and torch.equal(value.cpu(), theirs[name]) for name, value in mine.items()
    )
