"""The update loop of all methods: micro-batches, accumulation, clipping, schedule, one optimizer step per mini-batch.

    training_step(batch)
        prepared = self.prepare(batch)                 # nothing; reference log-probs; a rollout with its advantages
        for minibatch in self.minibatches(prepared):   # one, or epochs × mini-batches
            self.update(minibatch)                     # micro-batches by token budget → sums / global count → one step

Optimisation is manual for every method. One `update` is one optimizer step on one mini-batch. Its result does not
depend on the division into micro-batches and ranks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn

from postrain.hardware import collectives, sharding
from postrain.hardware.memory import total_memory
from postrain.hardware.shares import Share
from postrain.methods.lightning_hooks import LightningHooks
from postrain.methods.metrics import Metrics, add_metrics, combine
from postrain.methods.optim import lr_factor, make_optimizer, set_learning_rate
from postrain.models.gradient_checkpointing import gradient_checkpointing
from postrain.models.micro_batches import micro_batches
from postrain.models.reference import Reference
from postrain.models.size import micro_batch_tokens, training_bytes
from postrain.seeds import derive_seed
from postrain.types import Batch, LossSum, LRSchedule, Max, Mean, Rows


class UpdateLoop(LightningHooks):
    """The update loop and the hooks that a method overrides. The settings are those of Method."""

    learning_rate: float | str | None
    most_micro_batch_tokens: ClassVar[int]
    default_learning_rate: float
    """The method's rate for this model and adapter; of a config if there is one, else computed by `attach`."""
    batch_size: int
    schedule: LRSchedule
    warmup: float
    weight_decay: float
    adam_betas: tuple[float, float]
    adam_eps: float
    max_grad_norm: float
    micro_batch_tokens: int | None
    gradient_checkpointing: bool
    dropout: bool
    accumulated: dict[str, Mean | Max]
    current_rows: tuple[int, ...]

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate after the warm-up; the default as long as `auto` is not settled."""
        return self.learning_rate if isinstance(self.learning_rate, float) else self.default_learning_rate

    @property
    def tokens_per_micro_batch(self) -> int:
        """`micro_batch_tokens`, or the default for the policy on its device."""
        if self.micro_batch_tokens is None:
            self.micro_batch_tokens = micro_batch_tokens(
                self.policy.config,
                on_gpu=self.device.type == "cuda",
                most=self.most_micro_batch_tokens,
                dtype=next(self.policy.parameters()).dtype,
                memory=total_memory(self.device),
                state_bytes=self._state_bytes,
                # Those of this node, whose memory they share.
                devices=self.trainer.num_devices if self._trainer is not None else 1,
                checkpointing=self.gradient_checkpointing,
            )
        return self.micro_batch_tokens

    @property
    def _state_bytes(self) -> int:
        """Bytes of this rank's weights, gradients and optimizer, and of the frozen references."""
        dtype = next(self.policy.parameters()).dtype
        mine, trained = (
            sum(sharding.local_shard(each).numel() for each in some)
            for some in (self.parameters(), self.trainable_parameters())
        )
        frozen = [model for one in self.references() if (model := one.frozen) is not None]
        reference = sum(sharding.local_shard(each).nbytes for model in frozen for each in model.parameters())
        return training_bytes(mine, trained, dtype) + reference

    # Defined by methods ------------------------------------------------------------------------------------------

    def needs_reference(self) -> bool:
        """Whether the loss or a metric needs the reference policy."""
        return False

    def logs_kl(self) -> bool:
        """Whether every update logs the KL to the reference, as kl/exact or kl/k3."""
        return False

    def items_per_update(self) -> int:
        """Number of data items per update, over all ranks; more than batch_size with dynamic sampling."""
        return self.batch_size

    def on_model_attached(self) -> None:
        """Hook, called after all components are attached; builds further modules such as a critic."""

    def prepare(self, batch: Any) -> Any:
        """Computes the constants of the loss for this rank's share of the batch: rollouts, reference log-probs."""
        return batch

    def minibatches(self, prepared: Any) -> Iterator[Batch]:
        """The mini-batches of one update, one optimizer step each; the same number on all ranks."""
        yield prepared

    def derived(self, metrics: dict[str, float]) -> dict[str, float]:
        """Metrics derived from the means of an update or an evaluation, such as perplexity from loss."""
        return {}

    def may_step(self) -> bool:
        """Whether the gradient of the current mini-batch is applied; called after its backward pass."""
        return True

    def loss_sum(self, batch: Any) -> LossSum:
        """The loss of a micro-batch, summed over the units that `denominator` counts."""
        raise TypeError(f"{type(self).__name__} does not define loss_sum")

    def denominator(self, batch: Any) -> int:
        """Divisor of the loss sum, counted in this rank's mini-batch: supervised tokens by default, or items."""
        rows = batch if isinstance(batch, Rows) else batch.rows
        return sum(int(mask.sum()) for mask in rows.supervised)

    def evaluate(self, batch: Any, index: int, share: Share) -> Metrics:
        """See LightningHooks; `rows` are in the order of the batch."""
        found: dict[str, Mean | Max] = {}
        groups, rows = self.micro_batches(batch), defaultdict(list)
        dummies = self.dummy_passes(len(groups))
        with self.freed_blocks():
            for group in groups:
                part = batch.select(group)
                loss = self.loss_sum(part)
                metrics = {"loss": Mean(loss.total.detach(), self.denominator(part), loss.rows), **loss.metrics}
                for name, value in metrics.items():
                    if isinstance(value, Mean) and value.rows is not None:
                        rows[name].append(torch.stack(value.rows).float().cpu())
                add_metrics(found, metrics)
            for _ in range(dummies):
                self.loss_sum(batch.select([0]))
        order = torch.tensor([index for group in groups for index in group]).argsort()
        for name, parts in rows.items():
            mean, (total_B, count_B) = found[name], torch.cat(parts, dim=1)[:, order]
            assert isinstance(mean, Mean)
            found[name] = Mean(mean.total, mean.count, (total_B, count_B))
        return found

    # The loop ----------------------------------------------------------------------------------------------------

    @property
    def reference_policy(self) -> Reference:
        """The reference policy: the policy's initial weights, or the model given as `reference`."""
        assert self.components.reference is not None
        return self.components.reference

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer, in Lightning's wrapper of the same class."""
        optimizer = self.optimizers()
        assert isinstance(optimizer, torch.optim.Optimizer)
        return optimizer

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One update: Lightning's batch is this rank's share of a global batch."""
        # Dropout alone uses the global generator. Seeded per update, a resumed run draws the same masks.
        torch.manual_seed(derive_seed(self.components.seed, "dropout", self.counters.updates, collectives.rank()))
        self.current_rows = getattr(batch, "row_ids", ())
        self.accumulated = {}
        set_learning_rate(self.optimizer, self.peak_learning_rate * self.lr_factor())
        self.accumulate({"learning_rate": Max(self.peak_learning_rate * self.lr_factor())})
        self.set_dropout(active=False)
        prepared = self.prepare(batch.to(self.device))
        self.set_dropout(active=self.dropout)
        self.dummy_batch = prepared.select([0])
        for minibatch in self.minibatches(prepared):
            self.update(minibatch)
        self.counters.updates += 1
        self.counters.episodes += int(collectives.all_sum(torch.tensor(len(batch), device=self.device)))
        self.last_metrics = self.combined(self.accumulated)
        self.log_update(self.last_metrics, len(batch))
        self.stop_after_last_update()

    def set_dropout(self, *, active: bool) -> None:
        """Switches the dropout of all trained models on or off, by training and eval mode."""
        for model in self.trained_models():
            model.train(active)

    def update(self, minibatch: Batch) -> None:
        """One optimizer step on a global mini-batch, given this rank's share; skipped if `may_step` returns False."""
        self.optimizer.zero_grad()
        counts = collectives.all_sum(
            torch.tensor([self.denominator(minibatch), sum(minibatch.cost())], device=self.device)
        )
        with self.freed_blocks():
            self.accumulate_gradients(minibatch, counts[0])
        self.accumulate({"loss": Mean(0.0, self.denominator(minibatch))})
        collectives.sum_gradients(self.trainable_parameters())
        self.accumulate(
            {"grad_norm": Mean(collectives.clip_gradients(self.trainable_parameters(), self.max_grad_norm), 1)}
        )
        self.counters.tokens += int(counts[1])
        if self.may_step():
            self.optimizer.step()
            self.counters.optimizer_steps += 1

    def accumulate_gradients(self, minibatch: Batch, count: torch.Tensor) -> None:
        """Adds the gradients of the loss of each micro-batch, divided by the global `count` of its units."""
        groups = self.micro_batches(minibatch)
        dummies = self.dummy_passes(len(groups))
        for number, group in enumerate(groups, 1):
            sharding.sum_over_copies(self.trained_models(), enabled=number == len(groups) + dummies)
            with self.no_sync(), self.checkpointed_layers():
                found = self.loss_sum(minibatch.select(group))
                self.manual_backward(found.total / count)
            self.accumulate({**found.metrics, "loss": Mean(found.total.detach(), 0)})
        for number in range(1, dummies + 1):
            sharding.sum_over_copies(self.trained_models(), enabled=number == dummies)
            self.manual_backward(self.loss_sum(self.dummy_batch).total * 0.0)

    @contextmanager
    def checkpointed_layers(self) -> Iterator[None]:
        """Gradient checkpointing, if enabled, of all trained models: a separate critic keeps as much as the policy."""
        with ExitStack() as models:
            for model in self.trained_models():
                models.enter_context(gradient_checkpointing(model, enabled=self.gradient_checkpointing))
            yield

    def freed_blocks(self) -> AbstractContextManager[None]:
        """Frees the gathered blocks of sharded models after each forward pass; ranks do equally many inside."""
        if self.device_mesh is None or not getattr(self.trainer.strategy, "reshard_after_forward", True):
            return nullcontext()
        references = [each.frozen for each in self.references() if each.frozen is not None]
        return sharding.blocks_freed([*self.trained_models(), *references])

    def in_float32(self) -> bool:
        """Whether all computation is in float32, so that recomputed log-probabilities agree within small tolerances."""
        float32 = all(parameter.dtype == torch.float32 for parameter in self.policy.parameters())
        exact = torch.get_float32_matmul_precision() == "highest"
        return float32 and exact and not torch.is_autocast_enabled(self.device.type)

    def micro_batches(self, batch: Batch) -> list[list[int]]:
        """Item indices of the micro-batches, each of at most `tokens_per_micro_batch` tokens."""
        return micro_batches(batch.cost(), self.tokens_per_micro_batch, batch.prompt_groups())

    def dummy_passes(self, passes: int) -> int:
        """Dummy forward passes of this rank: under FSDP all ranks must gather weights equally often."""
        return 0 if self.device_mesh is None else max(collectives.gather(passes)) - passes

    def accumulate(self, metrics: Metrics) -> None:
        """Adds to the metrics of the current update."""
        add_metrics(self.accumulated, metrics)

    def combined(self, metrics: Metrics) -> dict[str, float]:
        """Metrics over all ranks as floats, with derived ones; names with a leading _ are inputs of `derived` only."""
        total = combine(metrics)
        return {name: value for name, value in sorted((total | self.derived(total)).items()) if name[0] != "_"}

    def trainable_parameters(self) -> list[nn.Parameter]:
        """All trainable parameters."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def lr_factor(self) -> float:
        """Learning-rate factor of the current update; depends on counters only, so resume needs no further state."""
        return lr_factor(self.schedule, self.counters.updates, self.updates, self.warmup)

    def no_sync(self) -> AbstractContextManager[None]:
        """Disables gradient reduction of DistributedDataParallel; `collectives.sum_gradients` reduces once per step."""
        wrapped = self.trainer.model
        return wrapped.no_sync() if isinstance(wrapped, nn.parallel.DistributedDataParallel) else nullcontext()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One optimizer over all trainable parameters: AdamW, or the one of `optim`."""
        # torch adds eps to the bias-corrected root, TensorFlow to the raw one: early steps differ by a small factor.
        adamw = partial(torch.optim.AdamW, betas=self.adam_betas, eps=self.adam_eps, fused=True)
        make, masters = self.components.optim or adamw, self.components.master_weights
        return make_optimizer(
            self,
            make,
            lr=self.peak_learning_rate,
            weight_decay=self.weight_decay,
            master_weights=masters,
            lr_ratio=self.components.lr_ratio,
        )
