"""Mixin of methods with a loss of the log-ratio log π(completion) − log π_ref(completion).

Reference log-probabilities are constants of the loss. They are computed once for all rows before the first update and
cached on disk (`precompute_ref_log_probs`), or at every update from a frozen copy or with the adapter off. Both give
the same numbers in float32; in bfloat16 they differ by rounding. Before the first update the policy equals its
reference, so precomputing needs no second model.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor, nn

from postrain.data.encode import collate
from postrain.data.module import DataModule
from postrain.errors import ConfigError
from postrain.hardware import collectives
from postrain.hardware.sharding import load_state, local_shard, sharded_parameters
from postrain.hardware.shares import Share, dealt
from postrain.methods.base import Method
from postrain.methods.metrics import Metrics
from postrain.methods.reference_cache import (
    LogpsByRow,
    cache_name,
    deduplicate,
    logps_by_row,
    read,
    rows_in,
    write,
    zeros_by_row,
)
from postrain.models.disk_cache import cache_directory, disk_cached
from postrain.models.parts import frozen_copy, weights_digest
from postrain.models.reference import Reference, in_eval_mode
from postrain.types import Batch, CountOrZero

# Largest initial log-ratio of a token due to rounding [nats]: in float32 (True), in lower precision (False).
INITIAL_TOLERANCE = {True: 1e-3, False: 1.0}


class ReferenceModelMixin(Method):
    """Adds a reference model. A subclass calls `reference_logps_of(batch)` in `prepare`, and `check_initial_log_ratio`
    in `loss_sum`."""

    precompute_ref_log_probs: bool = True
    """true: compute the reference log-probabilities of all rows before the first update and cache them on disk. false:
    compute them at every update."""
    reference_free: bool = False
    """Take all reference log-probabilities as 0: a uniform reference policy, as in SimPO and CPO."""
    ref_sync_steps: CountOrZero = 0
    """Move the reference towards the policy every N updates (TR-DPO, Gorbatovski et al. 2024); 0 keeps it fixed."""
    ref_mixup_alpha: Annotated[float, Interval(gt=0, le=1)] = 0.6
    """α of θ_ref ← α·θ + (1 − α)·θ_ref at each sync."""
    writes_cache = True
    """False to compute log-probabilities without writing them to the disk cache; not a key of the config."""

    def conditional_options(self) -> dict[str, str | None]:
        needed = None if self.ref_sync_steps else "method.ref_sync_steps above 0"
        return {**super().conditional_options(), "ref_mixup_alpha": needed}

    def needs_reference(self) -> bool:
        return not (self.precompute_ref_log_probs or self.reference_free)

    @property
    def is_cached(self) -> bool:
        """Whether the reference log-probabilities of all rows are computed before the first update."""
        return self.precompute_ref_log_probs and not self.reference_free

    def on_model_attached(self) -> None:
        self.cached_logps: LogpsByRow = {}
        self.synced: Reference | None = None
        if self.components.separate_reference and self.reference_free:
            raise ConfigError("reference has no effect with method.reference_free=true; remove one of them")
        if self.ref_sync_steps:
            self.synced = self.synced_reference()

    def references(self) -> list[Reference]:
        return [*super().references(), *([self.synced] if self.synced is not None else [])]

    def synced_reference(self) -> Reference:
        """A copy of the reference that `sync` updates; evaluations use the original, with the initial weights."""
        if not self.needs_reference():
            raise ConfigError(
                f"method.ref_sync_steps={self.ref_sync_steps} updates the reference policy; set "
                "method.precompute_ref_log_probs=false and method.reference_free=false"
            )
        if hasattr(self.policy, "disable_adapter"):
            raise ConfigError(
                "method.ref_sync_steps: not with an adapter, where the reference is the base model; leave it 0"
            )
        with self.reference_policy.scoring() as initial:
            if [p.shape for p in initial.parameters()] != [p.shape for p in self.policy.parameters()]:
                raise ConfigError("method.ref_sync_steps: the reference has other layers than the policy; leave it 0")
            return Reference(self.policy, frozen_copy(initial))

    def setup(self, stage: str) -> None:
        """Fills the cache before the first update, and before a checkpoint is loaded."""
        super().setup(stage)
        if self.is_cached:
            self.cached_logps = self.cached_or_computed(deduplicate(self.reference_batch(all_items(self.datamodule))))

    def reference_batch(self, batch: Batch) -> Batch:
        """The part of a batch whose rows need the reference's log-probabilities."""
        return batch

    def cached_or_computed(self, batch: Batch) -> LogpsByRow:
        """Log-probabilities of all rows: read from the disk cache, or computed over all ranks and written to it."""
        # micro_batch_tokens is in the name: it changes the last bits, which must not depend on the run that wrote them.
        path = cache_directory() / cache_name(batch, f"{self.reference_fingerprint()} {self.tokens_per_micro_batch}")
        model_name = "another model" if self.components.separate_reference else "the initial policy"
        message = f"reference: log-probabilities of {len(rows_in(batch))} rows under {model_name}"
        if all(collectives.gather(path.is_dir())):
            print_on_rank_zero(f"{message}, read from {path}\n")
            return read(path)
        print_on_rank_zero(f"{message}, computing them once ... ")
        started = time.monotonic()
        mine = dealt(self.micro_batches(batch))
        with self.trainer.strategy.precision_plugin.forward_context(), self.initial_model() as model:
            local = logps_by_row(model, batch, mine)
        known = {digest: logps for part in collectives.gather(local) for digest, logps in part.items()}
        print_on_rank_zero(f"{time.monotonic() - started:.1f} s, ")
        if not self.writes_cache:
            print_on_rank_zero("not cached\n")
            return known
        try:
            disk_cached(path.name, lambda directory: write(directory, known))
            print_on_rank_zero(f"cached in {path}\n")
        except ConfigError as reason:
            print_on_rank_zero(f"not cached: {reason}\n")
        return known

    def reference_fingerprint(self) -> str:
        """Identifies the reference's weights, device, precision and torch version, for the name of the cache."""
        if self.components.reference_fingerprint:
            return self.components.reference_fingerprint
        with self.initial_model() as model:
            exact, products = self.trainer.precision, torch.get_float32_matmul_precision()
            precision = exact if products == "highest" else f"{exact} {products}"
            return f"{weights_digest(model)} {self.device.type} {precision} {torch.__version__}"

    @contextmanager
    def initial_model(self) -> Iterator[nn.Module]:
        """The reference model, before the first update: without one of its own, the policy without its adapter."""
        reference, adapted = self.components.reference, hasattr(self.policy, "disable_adapter")
        if reference is not None and (adapted or self.components.separate_reference):
            with reference.scoring() as model:
                yield model
        else:
            with in_eval_mode(self.policy):
                yield self.policy

    def reference_logps_of(self, batch: Batch) -> LogpsByRow:
        """Log-probabilities of every row of a batch under the reference."""
        if self.is_cached:
            return self.cached_logps
        if self.reference_free:
            return zeros_by_row(rows_in(batch))
        with (self.synced or self.reference_policy).scoring() as model:
            return self.logps_by_row(model, batch)

    def logps_by_row(self, model: nn.Module, batch: Batch) -> LogpsByRow:
        """Log-probabilities of all items of a batch, without gradient."""
        return logps_by_row(model, batch, self.micro_batches(batch))

    def check_initial_log_ratio(self, log_ratio_max: Tensor) -> None:
        """Raises ConfigError if the policy differs from its reference before the first optimizer step."""
        may_differ = (
            self.counters.optimizer_steps
            or self.policy.training
            or self.reference_free
            or self.components.separate_reference
        )
        exact = self.in_float32() and (self.is_cached or not self.reference_policy.is_rounded)
        if may_differ or log_ratio_max <= INITIAL_TOLERANCE[exact]:
            return
        raise ConfigError(
            f"reference: before the first update the largest log-ratio to the reference is {float(log_ratio_max):.2g}, "
            "expected 0: the reference differs from the initial policy"
        )

    def evaluate(self, batch: Batch, index: int, share: Share) -> Metrics:
        return super().evaluate(self.prepare(batch), index, share)

    def minibatches(self, prepared: Batch) -> Iterator[Batch]:
        yield prepared
        if self.synced is not None and (self.counters.updates + 1) % self.ref_sync_steps == 0:
            self.sync(self.synced)

    def sync(self, reference: Reference) -> None:
        """Moves the reference towards the policy: θ_ref ← α·θ + (1 − α)·θ_ref, α = ref_mixup_alpha."""
        move_towards(reference, self.policy, self.ref_mixup_alpha)

    def state(self) -> dict[str, Any]:
        if self.synced is None:
            return {}
        with self.synced.scoring() as model:
            return {"reference": model.state_dict()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        # Absent if the checkpointed run had no ref_sync_steps: the reference keeps the initial weights.
        if self.synced is not None and "reference" in state:
            with self.synced.scoring() as model:
                load_state(model, state["reference"])


@torch.no_grad()
def move_towards(reference: Reference, policy: nn.Module, alpha: float) -> None:
    """θ_ref ← α·θ + (1 − α)·θ_ref, in place."""
    with reference.scoring() as model:
        targets, sources = sharded_parameters(model), sharded_parameters(policy)
        for name, target in targets.items():
            local_shard(target).lerp_(local_shard(sources[name]), alpha)


def print_on_rank_zero(text: str) -> None:
    """Prints `text` on rank 0 only."""
    if collectives.rank() == 0:
        print(text, end="", flush=True)


def all_items(data: DataModule) -> Batch:
    """All items that the run uses: those of its updates and the held-out ones."""
    schedule = data.train_dataloader()
    return collate([*(schedule.items[index] for index in schedule.indices_seen()), *data.eval])
