"""The effect of each row of an update on a held-out number, to first order.

With AdamW, the gradient g_i of row i changes the weights by about −η·c·g_i / (√v̂ + ε), where c is the factor of
gradient clipping and v̂ the bias-corrected second moment of the step. The change of a held-out loss L is therefore

    effect_i = −η·c · ⟨ g_i / (√v̂ + ε), ∇L ⟩

(TracIn, Pruthi et al. 2020, arXiv:2002.08484, eq. 3, for SGD; with AdamW's preconditioner as in LESS, Xia et al. 2024,
arXiv:2402.04333, section 3). It counts what the row adds over all steps in which the momentum carries it: the weights
1 − β₁, (1 − β₁)β₁, ... add up to 1. Other optimizers are treated as SGD. Of a method that samples, L is minus the mean
reward of held-out prompts, whose gradient is estimated by REINFORCE with a leave-one-out baseline.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from postrain import losses
from postrain.errors import ConfigError
from postrain.hardware.shares import Share
from postrain.methods.base import Method
from postrain.methods.online import Online, repeated
from postrain.models.micro_batches import micro_batches
from postrain.models.scoring import score
from postrain.seeds import derive_seed
from postrain.types import Batch, Mean, Rows

PROMPTS, SAMPLES = 32, 4
"""Held-out prompts, and completions of each, that estimate the gradient of the mean reward."""


@dataclass
class RowEffect:
    """A row of an update: a training row, a pair, or a sampled completion."""

    row: int
    """Its number in the source of the data."""
    texts: Mapping[str, tuple[str, str]]
    """Prompt and completion; of a pair, for the chosen and the rejected side."""
    effect: float = 0.0
    """The first-order change of the held-out number by this row."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of the row alone."""
    tokens: list[dict[str, Any]] = field(default_factory=list)
    """Token, advantage, importance ratio and whether it was clipped, for each optimizer step of the update."""


class Influence(Callback):
    """Measures the rows of one update while it is repeated, without changing it."""

    def __init__(self, update: int) -> None:
        self.update = update
        self.rows: dict[Any, RowEffect] = {}
        self.seen: Counter[Any] = Counter()
        """How often a prompt with the same completion was in the current mini-batch."""
        self.metric = ""
        """The held-out number."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        assert isinstance(pl_module, Method)
        if pl_module.counters.updates != self.update - 1:
            return
        method, original = pl_module, pl_module.update

        def update(minibatch: Batch) -> None:
            known, training = dict(method.accumulated), method.policy.training
            with torch.random.fork_rng(), torch.enable_grad():
                self.measure(method, minibatch)
            method.policy.train(training)
            method.accumulated = known
            original(minibatch)

        object.__setattr__(method, "update", update)

    def measure(self, method: Method, minibatch: Batch) -> None:
        """Adds the effects of a mini-batch, before its optimizer step."""
        self.metric, sign, held_out = held_out_gradient(method)
        count = method.denominator(minibatch)
        zero(method)
        method.accumulate_gradients(minibatch, torch.tensor(count))
        direction = step_direction(method, held_out)
        self.seen.clear()
        for index in [index for group in method.micro_batches(minibatch) for index in group]:
            self.add(method, minibatch.select([index]), count, sign, direction)
        zero(method)

    def add(
        self, method: Method, row: Batch, count: int, sign: float, direction: Mapping[nn.Parameter, Tensor]
    ) -> None:
        """Adds the effect of one row, given as a batch."""
        zero(method)
        with recorded_surrogate(method) as clipped:
            found = method.loss_sum(row)
        (found.total / count).backward()
        inner = sum(float((p.grad * u).sum()) for p, u in direction.items() if p.grad is not None)
        parts = dict(rows_of(row))
        first = next(iter(parts.values()))
        key = (*(tuple(part.ids[0].tolist()) for part in parts.values()), first.row_ids[0])
        if isinstance(method, Online):
            # Equal samples of a prompt are several rows; a later mini-batch with the same ones adds to them.
            self.seen[key] += 1
            key = (*key, self.seen[key])
        if key not in self.rows:
            texts = {name: texts_of(method, part) for name, part in parts.items()}
            self.rows[key] = RowEffect(first.row_ids[0], texts)
        effect = self.rows[key]
        effect.effect -= sign * inner
        shown = {"loss": Mean(found.total.detach(), method.denominator(row)), **found.metrics}
        effect.metrics = {name: one.value() for name, one in shown.items() if one.is_known()}
        if isinstance(method, Online) and method.last_step_BT is not None:
            effect.tokens += tokens_of(method, first, clipped)

    def ranked(self) -> list[RowEffect]:
        """The most harmful row first."""
        harmful = -1 if self.metric.endswith("loss") else 1
        return sorted(self.rows.values(), key=lambda row: harmful * row.effect)


def zero(method: Method) -> None:
    """Clears all gradients."""
    method.zero_grad(set_to_none=True)


def step_direction(method: Method, held_out: Mapping[nn.Parameter, Tensor]) -> dict[nn.Parameter, Tensor]:
    """η·c·∇L / (√v̂ + ε) of each parameter, given the gradient of the mini-batch in `grad`."""
    # As in training: also of parameters without a held-out gradient, such as a critic.
    grads = [p.grad for p in method.trainable_parameters() if p.grad is not None]
    norm = float(torch.stack([g.norm() for g in grads]).norm()) if grads else 0.0
    clip, found = min(1.0, method.max_grad_norm / (norm + 1e-6)), {}
    for group in method.optimizer.param_groups:
        for p in group["params"]:
            if p not in held_out or p.grad is None:
                continue
            scale = group["lr"] * clip
            state = method.optimizer.state.get(p, {})
            if "betas" in group and (not state or "exp_avg_sq" in state):
                decay, step = group["betas"][1], int(state.get("step", 0)) + 1
                before = state.get("exp_avg_sq", torch.zeros_like(p))
                v = (decay * before + (1 - decay) * (clip * p.grad) ** 2) / (1 - decay**step)
                found[p] = scale * held_out[p] / (v.sqrt() + group["eps"])
            else:
                found[p] = scale * held_out[p]
    return found


def held_out_gradient(method: Method) -> tuple[str, float, dict[nn.Parameter, Tensor]]:
    """The held-out number, the sign of its change in that of a loss, and the gradient of the loss."""
    zero(method)
    method.policy.eval()
    if isinstance(method, Online):
        metric, sign, count = "eval/reward/total", -1.0, reward_gradient(method)
    else:
        metric, sign, count = "eval/loss", 1.0, loss_gradient(method)
    return metric, sign, {p: p.grad.clone() / count for p in method.trainable_parameters() if p.grad is not None}


def loss_gradient(method: Method) -> float:
    """Adds the gradient of the summed held-out loss; returns what the mean divides it by."""
    original, count = method.loss_sum, 0.0

    def loss_sum(batch: Any) -> Any:
        found = original(batch)
        found.total.backward()
        return found

    object.__setattr__(method, "loss_sum", loss_sum)
    try:
        for index, (_, batch) in enumerate(method.datamodule.eval_batches()):
            loss = method.evaluate(batch.to(method.device), index, Share.of(len(batch)))["loss"]
            count += float(loss.count) if isinstance(loss, Mean) else 0.0
    finally:
        object.__delattr__(method, "loss_sum")
    return count or 1.0


def reward_gradient(method: Online) -> float:
    """Adds the gradient of minus the summed reward of held-out prompts; returns the number of scored completions."""
    if method.components.reward is None:
        raise ConfigError("why: this method learns from preferences; a reward of single completions is needed")
    prompts = method.datamodule.eval_prompts(PROMPTS)
    seeds = [derive_seed(method.components.seed, "why", index) for index in range(len(prompts) * SAMPLES)]
    with torch.no_grad():
        sampled = method.sample_and_score(method.policy, repeated(prompts, SAMPLES), seeds)
    advantage_B = losses.leave_one_out(sampled.reward_B.view(-1, SAMPLES)).flatten()
    for group in micro_batches(sampled.rows.cost(), method.tokens_per_micro_batch, None):
        scored = score(method.policy, sampled.rows.select(group), temperature=method.sampling.temperature)
        total_B = (scored.logps_BT * scored.mask_BT).sum(1)
        (-(advantage_B[group] * total_B).sum()).backward()
    return float((~sampled.reward_B.isnan()).sum()) or 1.0


@contextmanager
def recorded_surrogate(method: Method) -> Iterator[list[Tensor]]:
    """A list that gets the clipped tokens of the surrogate, [B, T], of methods that have one."""
    original: Callable[..., Any] | None = getattr(method, "surrogate", None)
    found: list[Tensor] = []
    if original is None:
        yield found
        return

    def surrogate(*args: Any, **kwargs: Any) -> Any:
        terms = original(*args, **kwargs)
        found.append(terms.clipped_BT)
        return terms

    object.__setattr__(method, "surrogate", surrogate)
    try:
        yield found
    finally:
        object.__delattr__(method, "surrogate")


def tokens_of(method: Online, rows: Rows, clipped: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Token, advantage, ratio and clip of the completion in the last call of the loss."""
    assert method.last_step_BT is not None
    ratio_BT, advantage_BT, mask_BT = (each.detach().expand_as(method.last_step_BT[2]) for each in method.last_step_BT)
    ids = rows.ids[0][rows.supervised[0]].tolist()
    kept = mask_BT[0].tolist()
    flags = clipped[-1].expand_as(mask_BT)[0].tolist() if clipped else [None] * len(kept)
    known = zip(advantage_BT[0].tolist(), ratio_BT[0].tolist(), flags, kept, strict=True)
    named = [(advantage, ratio, flag) for advantage, ratio, flag, keep in known if keep]
    decode = method.components.template.decode_all
    return [
        {"token": decode([token]), "advantage": advantage, "ratio": ratio, "clipped": flag}
        for token, (advantage, ratio, flag) in zip(ids, named, strict=False)
    ]


def rows_of(batch: Batch) -> Iterator[tuple[str, Rows]]:
    """The token rows of a batch, by the name of their field; a batch may be such rows itself."""
    if isinstance(batch, Rows):
        yield "", batch
        return
    for each in fields(batch):
        value = getattr(batch, each.name)
        if isinstance(value, Batch):
            yield from ((each.name if isinstance(value, Rows) else name, rows) for name, rows in rows_of(value))


def texts_of(method: Method, rows: Rows) -> tuple[str, str]:
    """Prompt and completion of a single row, with their special tokens."""
    ids, supervised = rows.ids[0], rows.supervised[0]
    start = int(supervised.long().argmax()) if bool(supervised.any()) else len(ids)
    decode = method.components.template.decode_all
    return decode(ids[:start].tolist()), decode(ids[start:].tolist())
