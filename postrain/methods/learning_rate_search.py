"""Measures learning rates before training, with real updates on real rows that are undone bit for bit.

`method.learning_rate=auto` takes the largest rate whose first STEPS updates move the policy by `rates.target`, a KL
divergence per token from its initial weights, and lower the loss of the same rows. While it is small, the divergence
grows with the square of the rate, so that each trial predicts the next one: rate · √(target / KL). A reward model has
no next tokens; there the divergence is that of the two sigmoids of its scores.

A rate that the user sets far above the default gets one trial, and is refused if it moves the policy by more than
LIMIT or raises the loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from postrain.errors import RefusedRun
from postrain.hardware import collectives
from postrain.hardware.sharding import sharded_parameters
from postrain.methods.optim import set_learning_rate
from postrain.models.reference import Reference
from postrain.models.scoring import micro_batches, score_with_reference, sequence_scores
from postrain.precision import widest
from postrain.types import Batch, Rows

if TYPE_CHECKING:
    from postrain.methods.base import Method

STEPS = 3
"""Optimizer steps of a trial."""
TRIALS = 5
"""Trials of a search."""
SHARE = 0.04
"""Share of a run's items that all trials may train on together."""
LIMIT = 100.0
"""A rate is refused if its divergence exceeds the method's target by this factor: the square of a tenfold rate."""
SUSPICIOUS = 3.0
"""A rate above this multiple of the default gets a trial."""


@dataclass(frozen=True)
class Trial:
    """The effect of the first updates at one learning rate."""

    rate: float
    divergence: float
    """From the initial policy [nats/token]."""
    loss_before: float
    """Of the rows that the trial trains on, with the initial weights."""
    loss_after: float
    target: float
    """The divergence of a suitable rate."""

    @property
    def learns(self) -> bool:
        """Whether the loss is finite and has not risen."""
        return math.isfinite(self.loss_after) and self.loss_after <= self.loss_before + 1e-6


class LearningRateTrials:
    """Trials of learning rates on the first rows of a run. Every rank takes part in each of them."""

    def __init__(self, method: Method, batches: Iterator[Batch]) -> None:
        self.method = method
        # Rollouts hold for several steps; other batches are cheap to prepare.
        count = 1 if method.samples else STEPS
        self.items = items_per_step(method)
        method.set_dropout(active=False)
        with unchanged(method), self.smaller_batches():
            given = method.items_per_update() // collectives.world_size()
            self.batches = [
                method.prepare(batch.select(range(min(len(batch), given))).to(method.device))
                for batch, _ in zip(batches, range(count), strict=False)
            ]
            self.loss = self.mean_loss()

    @contextmanager
    def smaller_batches(self) -> Iterator[None]:
        """Sets the batch size of the trials."""
        whole = self.method.batch_size
        self.method.batch_size = self.items * collectives.world_size()
        try:
            yield
        finally:
            self.method.batch_size = whole

    def run(self, rate: float) -> Trial:
        """Trains at this rate, measures, and restores everything."""
        with unchanged(self.method) as initial, self.smaller_batches():
            self.train(rate)
            target = self.method.learning_rates().target(self.loss)
            with initial.resident():
                divergence = self.divergence(initial)
            return Trial(rate, divergence, self.loss, self.mean_loss(), target)

    def search(self, rate: float) -> Trial:
        """The trial with the largest rate whose divergence is at most the target and whose loss falls, from `rate`."""
        best: Trial | None = None
        for _ in range(TRIALS):
            trial = self.run(rate)
            excess = trial.divergence / trial.target
            if trial.learns and excess <= 1.5 and (best is None or rate > best.rate):
                best = trial
            if trial.learns and 1 / 1.5 <= excess <= 1.5:
                break
            rate *= next_factor(trial)
        return best or self.run(rate)

    def train(self, rate: float) -> None:
        """STEPS optimizer steps."""
        method, done = self.method, 0
        method.set_dropout(active=method.dropout)
        set_learning_rate(method.optimizer, rate)
        while done < STEPS:
            for prepared in self.batches:
                method.dummy_batch = prepared.select([0])
                for minibatch in method.minibatches(prepared):
                    if done < STEPS:
                        method.update(minibatch)
                    done += 1
        method.set_dropout(active=False)

    @torch.no_grad()
    def mean_loss(self) -> float:
        """The loss of all prepared rows."""
        total = torch.zeros(2, dtype=torch.float64)
        for prepared in self.batches:
            for group in self.method.micro_batches(prepared):
                part = prepared.select(group)
                total += torch.tensor([float(self.method.loss_sum(part).total), self.method.denominator(part)])
        loss, count = collectives.all_sum(total.to(self.method.device, widest(self.method.device))).tolist()
        return loss / max(1.0, count)

    @torch.no_grad()
    def divergence(self, initial: Reference) -> float:
        """The divergence of the current policy from the initial one, a mean over tokens (over scores)."""
        total = torch.zeros(2, dtype=torch.float64)
        for prepared in self.batches:
            rows = rows_of(prepared)
            for group in micro_batches(rows.cost(), self.method.tokens_per_micro_batch):
                total += self.summed_divergence(rows.select(group), initial)
        moved, count = collectives.all_sum(total.to(self.method.device, widest(self.method.device))).tolist()
        return moved / max(1.0, count)

    def summed_divergence(self, rows: Rows, initial: Reference) -> Tensor:
        """The sum of the divergences and their number, [2]."""
        policy = self.method.policy
        if self.method.head == "causal":
            found = score_with_reference(policy, initial, rows)
            return torch.stack([found.kl_BT.sum(), found.mask_BT.sum()]).cpu().double()
        now_B = sequence_scores(policy, rows).float()
        with initial.scoring() as frozen:
            before_B = sequence_scores(frozen, rows).float()
        share_B = now_B.sigmoid()
        cross_B = binary_cross_entropy_with_logits(before_B, share_B, reduction="none")
        own_B = binary_cross_entropy_with_logits(now_B, share_B, reduction="none")
        return torch.tensor([float((cross_B - own_B).sum()), len(now_B)]).double()


def items_per_step(method: Method) -> int:
    """Items of this rank in a step, such that all trials together take SHARE of the run's items."""
    size = SHARE * method.updates * method.batch_size / (TRIALS * STEPS)
    unit = getattr(method, "minibatches_per_epoch", 1)
    wanted = max(8, round(size)) // collectives.world_size()
    return max(1, min(method.batch_size // collectives.world_size(), wanted) // unit) * unit


def next_factor(trial: Trial) -> float:
    """The factor from a trial's rate to the next one."""
    if not math.isfinite(trial.divergence) or not math.isfinite(trial.loss_after):
        return 0.1
    predicted = min(10.0, max(0.03, math.sqrt(trial.target / max(trial.divergence, 1e-12))))
    return predicted if trial.learns else min(predicted, 1 / 3)


class InitialWeights(Reference):
    """The policy with the weights that it had before the trial; both share one module."""

    def __init__(self, method: Method, values: Mapping[str, Tensor]) -> None:
        super().__init__(method.policy, None, description="")
        self.method, self.values = method, values

    @contextmanager
    def scoring(self) -> Iterator[torch.nn.Module]:
        exchange_weights(self.method, self.values)
        try:
            with torch.no_grad():
                yield self._policy
        finally:
            exchange_weights(self.method, self.values)


def trained_weights(method: Method) -> dict[str, Tensor]:
    """Copies of the trained weights, of this rank's shards if they are sharded."""
    weights = {name: each for name, each in sharded_parameters(method).items() if each.requires_grad}
    return {name: each.detach().clone() for name, each in weights.items()}


@torch.no_grad()
def exchange_weights(method: Method, values: Mapping[str, Tensor]) -> None:
    """Exchanges the trained weights and `values`."""
    parameters = sharded_parameters(method)
    for name, value in values.items():
        current = parameters[name].detach().clone()
        parameters[name].copy_(value)
        value.copy_(current)


@contextmanager
def unchanged(method: Method) -> Iterator[Reference]:
    """Restores weights, optimizer, counters, state, metrics and random numbers; yields the initial policy."""
    values, optimizer = trained_weights(method), cast("Any", method.optimizer)
    saved = {parameter: deepcopy(values) for parameter, values in optimizer.state.items()}
    counters, state, metrics = deepcopy(method.counters), deepcopy(method.state()), method.accumulated
    random, training = torch.get_rng_state(), method.policy.training
    method.accumulated = {}
    try:
        # Exchanging the weights of a sharded policy would gather them again for each piece of the vocabulary's logits.
        yield InitialWeights(method, values) if method.device_mesh is None else method.reference_policy
    finally:
        exchange_weights(method, values)
        for parameter in method.trainable_parameters():
            parameter.grad = None
        optimizer.state.clear()
        optimizer.state.update(saved)
        method.counters, method.accumulated = counters, metrics
        method.load_state(state)
        method.set_dropout(active=training)
        torch.set_rng_state(random)


def rows_of(batch: Batch) -> Rows:
    """The first rows in a batch: prompts with completions, the chosen side of pairs."""
    if isinstance(batch, Rows):
        return batch
    for each in fields(batch):
        value = getattr(batch, each.name)
        if isinstance(value, Batch):
            return rows_of(value)
    raise TypeError(f"{type(batch).__name__} has no rows")


def settle_learning_rate(method: Method, batches: Iterator[Batch]) -> None:
    """Finds the learning rate where it is `auto`; checks one that is far above the default, except with fsdp.

    Raises RefusedRun for a rate that destroys the policy in its first updates.
    """
    default = method.default_learning_rate
    if method.learning_rate == "auto":
        trials = LearningRateTrials(method, batches)
        found = trials.search(default)
        method.learning_rate = float(f"{found.rate:.1e}")
        if collectives.rank() == 0:
            print(describe_found(method.learning_rate, found), flush=True)
    elif method.device_mesh is None and method.check_learning_rate and method.peak_learning_rate > SUSPICIOUS * default:
        check_rate(method, default, batches)


def describe_found(rate: float, found: Trial) -> str:
    """The line of the console."""
    return (
        f"learning rate {rate:.2g} (auto): {STEPS} updates at it move the policy by {found.divergence:.2g} nats/token, "
        f"loss of their rows {found.loss_before:.3g} → {found.loss_after:.3g}"
    )


def check_rate(method: Method, default: float, batches: Iterator[Batch]) -> None:
    """Raises RefusedRun for a rate that destroys the policy in its first updates."""
    rate = method.peak_learning_rate
    trial = LearningRateTrials(method, batches).run(rate)
    limit = LIMIT * trial.target
    if trial.divergence <= limit and trial.learns:
        return
    raise RefusedRun(
        f"method.learning_rate={rate:g}: {STEPS} updates at this rate move the policy by {trial.divergence:.2g} "
        f"nats/token and change the loss of their rows from {trial.loss_before:.3g} to {trial.loss_after:.3g} (allowed "
        f"{limit:.2g} nats/token, no rise of the loss); the default is {default:g}. Give a lower rate or auto, or "
        "method.check_learning_rate=false"
    )
