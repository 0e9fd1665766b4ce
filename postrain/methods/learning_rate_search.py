"""Measures learning rates before training, with real updates on real rows that are undone bit for bit.

`method.learning_rate=auto` takes the largest rate whose first STEPS updates move the policy by `rates.target`, a KL
divergence per token from its initial weights, and lower the loss of the same rows. While it is small, the divergence
grows with the square of the rate, so that each trial predicts the next one: rate · √(target / KL). A reward model has
no next tokens; there the divergence is that of the two sigmoids of its scores. Rows without a gradient (completions of
equal reward) give no measurement; further rows replace them.

A rate that the user sets far above the default gets one trial, and is refused if it moves the policy by more than
LIMIT or raises the loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from postrain.errors import RefusedRun
from postrain.hardware import collectives
from postrain.methods.metrics import combine
from postrain.methods.optim import set_learning_rate
from postrain.methods.undo import unchanged
from postrain.models.micro_batches import micro_batches
from postrain.models.reference import Reference
from postrain.models.scoring import score_with_reference, sequence_scores
from postrain.precision import widest
from postrain.types import Batch, Rows

if TYPE_CHECKING:
    from postrain.methods.base import Method

STEPS = 3
"""Optimizer steps of a trial."""
TRIALS = 5
"""Trials of a search."""
DRAWS = 4
"""Draws of rows until a trial has a gradient."""
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
    grad_norm: float
    """Mean over the steps."""

    @property
    def measures(self) -> bool:
        """Whether the rows have a gradient, and it moves the policy."""
        return self.grad_norm != 0 and self.divergence != 0

    @property
    def learns(self) -> bool:
        """Whether the loss is finite and has not risen."""
        return math.isfinite(self.loss_after) and self.loss_after <= self.loss_before + 1e-6


class LearningRateTrials:
    """Trials of learning rates on the first rows of a run. Every rank takes part in each of them."""

    def __init__(self, method: Method, batches: Iterator[Batch]) -> None:
        self.method = method
        self.source, self.draws = batches, 0
        self.items = items_per_step(method)
        method.set_dropout(active=False)
        self.draw()

    def draw(self) -> bool:
        """Prepares the next rows of the run; returns False if there are none."""
        method = self.method
        # Rollouts hold for several steps; other batches are cheap to prepare.
        found = list(islice(self.source, 1 if method.samples else STEPS))
        if not found:
            return False
        with unchanged(method), self.settings():
            # The number of the update is in the seeds of rollouts and in the prompts of a curriculum.
            method.counters.updates = self.draws
            given = method.items_per_update() // collectives.world_size()
            self.batches = [
                method.prepare(batch.select(range(min(len(batch), given))).to(method.device)) for batch in found
            ]
            self.loss = self.mean_loss()
        self.draws += 1
        return True

    @contextmanager
    def settings(self) -> Iterator[None]:
        """Sets the batch size of the trials, and no critic warm-up, which does not train the policy."""
        changed = {"batch_size": self.items * collectives.world_size(), "critic_warmup": 0}
        before = {name: getattr(self.method, name) for name in changed if hasattr(self.method, name)}
        for name in before:
            setattr(self.method, name, changed[name])
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(self.method, name, value)

    def run(self, rate: float) -> Trial:
        """Trains at this rate, measures, and restores everything."""
        with unchanged(self.method) as initial, self.settings():
            grad_norm = self.train(rate)
            target = self.method.learning_rates().target(self.loss)
            with initial.resident():
                divergence = self.divergence(initial)
            return Trial(rate, divergence, self.loss, self.mean_loss(), target, grad_norm)

    def first(self, rate: float) -> Trial | None:
        """A trial on the first rows that have a gradient; None if DRAWS draws have none."""
        while not (trial := self.run(rate)).measures:
            if self.draws == DRAWS or not self.draw():
                return None
        return trial

    def search(self, rate: float) -> Trial | None:
        """The trial with the largest rate whose divergence is at most the target and whose loss falls, from `rate`;
        None without a gradient."""
        best: Trial | None = None
        trial = self.first(rate)
        if trial is None:
            return None
        for number in range(TRIALS):
            trial = self.run(rate) if number else trial
            excess = trial.divergence / trial.target
            if trial.learns and excess <= 1.5 and (best is None or rate > best.rate):
                best = trial
            if trial.learns and 1 / 1.5 <= excess <= 1.5:
                break
            rate *= next_factor(trial)
        return best or self.run(rate)

    def train(self, rate: float) -> float:
        """STEPS optimizer steps; returns their mean gradient norm."""
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
        return combine(method.accumulated)["grad_norm"]

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
        method.learning_rate = default if found is None else float(f"{found.rate:.1e}")
        if collectives.rank() == 0:
            print(describe_found(method.learning_rate, found, draws=trials.draws), flush=True)
    elif method.device_mesh is None and method.check_learning_rate and method.peak_learning_rate > SUSPICIOUS * default:
        check_rate(method, default, batches)


def describe_found(rate: float, found: Trial | None, *, draws: int) -> str:
    """The line of the console."""
    if found is None:
        return f"learning rate {rate:.2g} (default): auto cannot measure one, {no_gradient(draws)}"
    return (
        f"learning rate {rate:.2g} (auto): {STEPS} updates at it move the policy by {found.divergence:.2g} nats/token, "
        f"loss of their rows {found.loss_before:.3g} → {found.loss_after:.3g}"
    )


def no_gradient(draws: int) -> str:
    """The reason why there is no trial."""
    return f"because the first {draws} batches of the run give the policy no gradient"


def check_rate(method: Method, default: float, batches: Iterator[Batch]) -> None:
    """Raises RefusedRun for a rate that destroys the policy in its first updates."""
    rate = method.peak_learning_rate
    trials = LearningRateTrials(method, batches)
    trial = trials.first(rate)
    if trial is None:
        if collectives.rank() == 0:
            print(f"learning rate {rate:g}: not checked, {no_gradient(trials.draws)}", flush=True)
        return
    limit = LIMIT * trial.target
    problems = []
    if not trial.divergence <= limit:
        problems.append(f"move the policy by {trial.divergence:.3g} nats/token (allowed {limit:.3g})")
    if not trial.learns:
        problems.append(f"raise the loss of their rows from {trial.loss_before:.3g} to {trial.loss_after:.3g}")
    if problems:
        raise RefusedRun(
            f"method.learning_rate={rate:g}: {STEPS} updates at this rate {' and '.join(problems)}; the default is "
            f"{default:g}. Give a lower rate or auto, or method.check_learning_rate=false"
        )
