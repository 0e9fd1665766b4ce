"""Bases of the online methods: `Online` samples completions from the policy and iterates over each rollout in epochs of
mini-batches; `PolicyGradient` adds the KL penalty and the entropy bonus of PPO and the GRPO family.

Seeds of completions depend on the prompt's index in the global batch and on the completion's number, never on the rank
that samples it. Axes: B completions, prompt-major, T completion tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import reduce
from operator import add
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from postrain.data.kinds.prompt import Prompts
from postrain.errors import ConfigError
from postrain.hardware import collectives
from postrain.losses.divergence import KLEstimator, kl
from postrain.methods.base import Method
from postrain.methods.metrics import Metrics
from postrain.models.scoring import ReferenceScores, Scores, in_micro_batches, pad_T, score, score_with_reference
from postrain.rollout.collect import Rollouts, collect
from postrain.rollout.engine import Mixture
from postrain.seeds import derive_seed, generator
from postrain.types import Count, LRSchedule, Max, Mean, NonNegative, Rows

# Largest difference of two float32 log-probabilities that summation order explains.
SAMPLER_TOLERANCE = 1e-2

KLPlacement = Literal["reward", "loss"]

BIASED_KL: Mapping[tuple[KLEstimator, KLPlacement], str] = {
    ("k2", "reward"): "its expected gradient is not that of the KL; use method.kl_estimator=k1, or method.kl_in=loss",
    ("k3", "reward"): "its expected gradient is not that of the KL; use method.kl_estimator=k1",
    ("exact", "reward"): "it is the same number whichever token is drawn, so it has no gradient; use method.kl_in=loss",
    ("k1", "loss"): "its expected gradient is 0; use method.kl_in=reward, or method.kl_estimator=exact or k2",
    ("k3", "loss"): (
        "its expected gradient is that of KL(reference ‖ policy), not of KL(policy ‖ reference); "
        "use method.kl_estimator=exact or k2"
    ),
}
"""Rejected combinations with reason and remedy; losses/divergence.py has the whole table."""


class Online(Method):
    """Base of methods trained on the policy's own completions of prompts."""

    kind: ClassVar[str] = "Prompt"
    needs_reward: ClassVar[bool] = True

    schedule: LRSchedule = "constant"
    micro_batch_tokens: Count = 8192
    epochs: Count = 1
    """Epochs over each rollout batch."""
    minibatches_per_epoch: Count = 1
    """Mini-batches, one optimizer step each, in each epoch."""
    missing_eos_penalty: NonNegative = 0.0
    """Penalty subtracted from the reward of a completion truncated at rollout.max_new_tokens."""
    mask_truncated_completions: bool = False
    """Whether completions truncated at rollout.max_new_tokens are masked out of the loss."""

    def on_model_attached(self) -> None:
        self.sampling = self.components.engine.sampling
        # True before the first optimizer step of a rollout: recomputed log-probs must equal the recorded ones.
        self.first_pass = False
        self.last_step_BT: tuple[Tensor, Tensor, Tensor] | None = None
        self.check()

    def steps_per_update(self) -> int:
        return self.epochs * self.minibatches_per_epoch

    def check(self) -> None:
        """Raises ConfigError for contradicting settings."""
        if self.batch_size % self.minibatches_per_epoch:
            raise ConfigError(
                f"method.minibatches_per_epoch={self.minibatches_per_epoch} must divide "
                f"method.batch_size={self.batch_size}"
            )
        if collectives.world_size() > self.batch_size:
            raise ConfigError(
                f"method.batch_size={self.batch_size}: {collectives.world_size()} ranks need at least one prompt each"
            )
        if self.sampling.temperature == 0:
            raise ConfigError("rollout.temperature=0 always draws the same completion; learning needs it above 0")

    def record_step(self, ratio_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor) -> None:
        """Keeps the last micro-batch's ratios and advantages for histograms."""
        self.last_step_BT = ratio_BT.detach(), advantages_BT, mask_BT

    def distributions(self) -> dict[str, Tensor]:
        """Ratios and advantages of the tokens of that micro-batch; {} before the first one."""
        if self.last_step_BT is None:
            return {}
        ratio_BT, advantages_BT, mask_BT = self.last_step_BT
        return {"ratio": ratio_BT.expand_as(mask_BT)[mask_BT], "advantage": advantages_BT[mask_BT]}

    def rollout(
        self,
        prompts: Prompts,
        *,
        indices: Sequence[int] | None = None,
        num_generations: int = 1,
        purpose: str = "rollout",
        model: nn.Module | Mixture | None = None,
    ) -> Rollouts:
        """`num_generations` completions of each prompt, prompt-major, sampled from the policy or from `model`, with
        rewards. `indices` are the prompts' in the global batch, by default those of this rank's share."""
        if indices is None:
            indices = range(collectives.rank(), len(prompts) * collectives.world_size(), collectives.world_size())
        seeds = [
            derive_seed(self.components.seed, purpose, self.counters.updates, index, number)
            for index in indices
            for number in range(num_generations)
        ]
        repeated = prompts.select([i for i in range(len(prompts)) for _ in range(num_generations)])
        rollouts = self.sample_and_score(self.policy if model is None else model, repeated, seeds)
        # Exposes NaN in the policy's weights, even if the loss masks these tokens.
        self.accumulate({"rollout/logp": Mean(rollouts.logps_BT.sum(), torch.cat(rollouts.rows.supervised).sum())})
        return rollouts

    def sample_and_score(self, model: nn.Module | Mixture, prompts: Prompts, seeds: Sequence[int]) -> Rollouts:
        """A completion of each prompt with its reward; `seeds` are the completions'."""
        parts = self.components
        return collect(
            parts.engine,
            model,
            parts.template,
            prompts,
            seeds=seeds,
            reward=parts.reward,
            environment=parts.environment,
        )

    def rollout_metrics(self, rollouts: Rollouts) -> Metrics:
        """Metrics of completions, without reward metrics if there is only a preference."""
        found = rollouts.metrics()
        return (
            found
            if self.components.reward
            else {name: v for name, v in found.items() if not name.startswith("reward/")}
        )

    def shaped_rewards(self, rollouts: Rollouts) -> Tensor:
        """The reward of each completion with the method's own penalties, NaN if unscorable, [B]."""
        return rollouts.reward_B - self.missing_eos_penalty * (~rollouts.finished_B)

    def truncated_and_masked(self, rollouts: Rollouts) -> Tensor:
        """True where a completion was truncated and `mask_truncated_completions` excludes it from the loss, [B]."""
        out_B = ~rollouts.finished_B & self.mask_truncated_completions
        if self.mask_truncated_completions:
            self.accumulate({"completion/masked": Mean(out_B.sum(), len(out_B))})
        return out_B

    def logps(self, model: nn.Module, rows: Rows) -> Tensor:
        """Log-probabilities of the completions under a model, at the sampling temperature, without gradient, [B, T]."""
        return in_micro_batches(
            lambda part: score(model, part, temperature=self.sampling.temperature).logps_BT,
            rows,
            self.micro_batch_tokens,
        )

    def old_logps(self, rollouts: Rollouts) -> Tensor:
        """Old log-probabilities, [B, T], recorded while sampling or recomputed; sets `first_pass`."""
        # In lower precision engine and scorer round differently, and the first ratio must be 1: recompute.
        self.first_pass = self.components.engine.exact_logps and self.in_float32()
        if self.first_pass:
            return rollouts.logps_BT
        logps_BT = self.logps(self.policy, rollouts.rows)
        self.accumulate({"rollout/logp_error": sampler_error(rollouts.logps_BT, logps_BT, strict=False)})
        return logps_BT

    def check_first_pass(self, recorded_BT: Tensor, own_BT: Tensor) -> None:
        """Before the first optimizer step the policy must reproduce the recorded log-probabilities."""
        if self.first_pass:
            error = sampler_error(recorded_BT, own_BT.detach(), strict=not self.dropout)
            self.accumulate({"rollout/logp_error": error})

    def reference_logps(self, rows: Rows) -> Tensor:
        """Log-probabilities of the completions under the reference, without gradient, [B, T]."""
        with self.reference_policy.scoring() as frozen:
            return self.logps(frozen, rows)

    def minibatch_indices(self, items: int) -> Iterator[Sequence[int]]:
        """Epochs × mini-batches: the indices of each mini-batch in a rollout of `items` over all ranks."""
        for epoch in range(self.epochs):
            source = generator(self.components.seed, "minibatches", self.counters.updates, epoch)
            for chunk in torch.randperm(items, generator=source).chunk(self.minibatches_per_epoch):
                yield chunk.tolist()

    def evaluate(self, batch: Any, index: int) -> Metrics:
        """Empty: held-out prompts have no loss. Evaluation measures samples, rewards and KL for every method."""
        return {}

    def validate(self, batch: Prompts, index: int) -> Metrics:
        """Also samples a completion of each prompt with fixed seeds and adds rewards, lengths and finish rates."""
        seeds = [derive_seed(self.components.seed, "evaluation", index, number) for number in range(len(batch))]
        return {**self.evaluate(batch, index), **self.rollout_metrics(self.sample_and_score(self.policy, batch, seeds))}


class PolicyGradient(Online):
    """Base of policy-gradient methods with a KL penalty and an entropy bonus."""

    kl_coef: NonNegative = 0.0
    """Weight of KL(policy ‖ reference); 0 needs no reference."""
    kl_estimator: KLEstimator = "k1"
    """KL estimator of the penalty. k1 belongs in the reward; exact (a sum over the vocabulary), k2 and k3 in the loss,
    where exact and k2 have the gradient of the KL. All estimates are logged."""
    kl_in: KLPlacement = "reward"
    """reward: subtract the KL penalty from the reward (k1). loss: add it to the loss (exact, k2, k3)."""
    entropy_coef: NonNegative = 0.0
    """Weight of the entropy bonus [per nat]; 0 disables it."""

    published_kl: ClassVar[frozenset[tuple[KLEstimator, KLPlacement]]] = frozenset()
    """Combinations with a biased gradient that the method's paper uses."""

    def on_model_attached(self) -> None:
        super().on_model_attached()
        self.coef = self.kl_coef

    def check(self) -> None:
        super().check()
        chosen = (self.kl_estimator, self.kl_in)
        if chosen in BIASED_KL and chosen not in self.published_kl:
            raise ConfigError(
                f"method.kl_estimator={self.kl_estimator} with method.kl_in={self.kl_in}: {BIASED_KL[chosen]}"
            )

    def kl_in_this_loss(self) -> bool:
        """Whether the loss of this update has a KL term."""
        return self.kl_in == "loss" and self.coef > 0

    def scored(self, rows: Rows, head: Callable[[Tensor], Tensor] | None = None) -> Scores | ReferenceScores:
        """The policy on these rows, differentiable, beside the reference where the loss needs their exact KL."""
        options: Any = {"temperature": self.sampling.temperature, "entropy": self.entropy_coef > 0, "head": head}
        if self.kl_in_this_loss() and self.kl_estimator == "exact":
            return score_with_reference(self.policy, self.reference_policy, rows, **options)
        return score(self.policy, rows, **options)

    def kl_term(self, found: Scores | ReferenceScores, ref_logps_BT: Tensor) -> Tensor:
        """The KL term of each token by `kl_estimator`, differentiable, [B, T], or [B, 1] for whole completions."""
        if isinstance(found, ReferenceScores):
            return found.kl_BT
        assert self.kl_estimator != "exact"
        return kl(found.logps_BT, ref_logps_BT, self.kl_estimator)


def local_indices(indices: Sequence[int]) -> list[int]:
    """The items that this rank holds (rank::world_size), as indices into its share of the global batch."""
    world, rank = collectives.world_size(), collectives.rank()
    return [index // world for index in indices if index % world == rank]


def completion_mask(rows: Rows, device: torch.device) -> Tensor:
    """True at the completion tokens of each row, left-aligned, [B, T]."""
    counts_B = torch.tensor([int(mask.sum()) for mask in rows.supervised], device=device)
    return torch.arange(int(counts_B.max()), device=device) < counts_B[:, None]


def sampler_error(recorded_BT: Tensor, own_BT: Tensor, *, strict: bool) -> Max:
    """Largest difference between log-probabilities recorded while sampling and the policy's own, 0 outside the mask.

    Raises ConfigError if `strict` (all float32) and it exceeds rounding: the first importance ratio would not be 1.
    """
    error = float((recorded_BT - own_BT).abs().max())
    if strict and error > SAMPLER_TOLERANCE:
        raise ConfigError(
            f"rollout: sampled log-probabilities differ by {error:.2g} from the policy's own in float32, so the engine "
            "and the model do not compute the same"
        )
    return Max(error)


def concatenated(parts: Sequence[Rollouts]) -> Rollouts:
    """Rollouts one after the other, their tensors padded to the longest."""
    names = [f.name for f in fields(Rollouts)]
    return Rollouts(**{name: _concatenated([getattr(part, name) for part in parts]) for name in names})


def _concatenated(values: list[Any]) -> Any:
    if isinstance(values[0], Tensor):
        width = max(value.shape[-1] for value in values)
        return torch.cat([pad_T(value, width) if value.ndim > 1 else value for value in values])
    return None if values[0] is None else reduce(add, values)
