"""Base of the online methods: samples completions from the policy and iterates over each rollout in epochs of
mini-batches. `RolloutCorrection` adds old log-probabilities and importance weights, `PolicyGradient` a KL penalty.

The seed of a completion depends on the prompt's index in the global batch and the completion's number, not on the rank.

Axes: B completions, prompt-major, T completion tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from postrain.data.kinds.prompt import Prompts
from postrain.errors import ConfigError
from postrain.hardware import collectives
from postrain.hardware.shares import Share
from postrain.methods.base import Method
from postrain.methods.metrics import Metrics
from postrain.models.micro_batches import in_micro_batches
from postrain.models.scoring import score
from postrain.rollout.ahead import SampledAhead
from postrain.rollout.collect import Rollouts, collect
from postrain.rollout.engine import Engine, Mixture
from postrain.rollout.turns import Rollout
from postrain.seeds import derive_seed, generator
from postrain.types import Batch, Count, LRSchedule, Mean, NonNegative, Rows


class Online(Method):
    """Base of methods trained on completions that the policy samples."""

    kind: ClassVar[str] = "Prompt"
    samples: ClassVar[bool] = True
    needs_reward: ClassVar[bool] = True
    most_micro_batch_tokens: ClassVar[int] = 8192

    schedule: LRSchedule = "constant"
    epochs: Count = 1
    """Number of epochs over each rollout."""
    minibatches_per_epoch: Count = 1
    """Number of mini-batches per epoch, one optimizer step each."""
    missing_eos_penalty: NonNegative = 0.0
    """Penalty subtracted from the reward of completions truncated at rollout.max_new_tokens; 0 disables it."""
    mask_truncated_completions: bool = False
    """Whether completions truncated at rollout.max_new_tokens are masked out of the loss."""

    def on_model_attached(self) -> None:
        self.sampling = self.components.engine.sampling
        # True before the first optimizer step of a rollout: recomputed log-probs must equal the recorded ones.
        self.first_pass = False
        self.last_step_BT: tuple[Tensor, Tensor, Tensor] | None = None
        self.overlap: int = getattr(self.components.engine, "overlap", 0)
        self.sampled_ahead = SampledAhead()
        self.next_prompts: Prompts | None = None
        """With rollout.overlap=1, this rank's prompts of the next update; None outside an update."""
        self.check()

    def steps_per_update(self) -> int:
        return self.epochs * self.minibatches_per_epoch

    def recomputes_logps(self) -> bool:
        """Whether completions in another precision than the policy's cost a forward pass, for old log-probabilities
        that are recorded otherwise."""
        return False

    def several_steps(self) -> str | None:
        """What makes the importance ratio of an update differ from 1: None if it does, else the settings."""
        return None if self.steps_per_update() > 1 else "method.epochs or method.minibatches_per_epoch above 1"

    def check(self) -> None:
        """Raises ConfigError for contradicting settings."""
        if self.batch_size % self.minibatches_per_epoch:
            raise ConfigError(
                f"method.minibatches_per_epoch={self.minibatches_per_epoch} must divide "
                f"method.batch_size={self.batch_size}"
            )
        if collectives.world_size() > self.batch_size:
            raise ConfigError(
                f"method.batch_size={self.batch_size}: expected at least one prompt per rank; give at least "
                f"{collectives.world_size()}"
            )
        if self.sampling.temperature == 0:
            raise ConfigError("rollout.temperature=0 always samples the same completion; training needs it above 0")

    def record_step(self, ratio_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor) -> None:
        """Stores ratios and advantages of the last micro-batch for histograms."""
        self.last_step_BT = ratio_BT.detach(), advantages_BT, mask_BT

    def distributions(self) -> dict[str, Tensor]:
        """Importance ratios and advantages of the tokens of the last micro-batch; {} before the first one."""
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
        """`num_generations` completions of each prompt, prompt-major, sampled from `model` or the policy, with rewards.

        `indices` are those of the prompts in the global batch; by default, of this rank's share.
        """
        if indices is None:
            indices = global_indices(range(len(prompts)))
        update = self.counters.updates
        seeds = self.completion_seeds(purpose, update, indices, num_generations)
        ahead = self.sampled_ahead.take(update, indices) if purpose == "rollout" else None
        rollouts = self.sample_and_score(
            self.policy if model is None else model, repeated(prompts, num_generations), seeds, ahead
        )
        # Exposes NaN in the policy's weights, even if the loss masks these tokens.
        self.accumulate({"rollout/logp": Mean(rollouts.logps_BT.sum(), torch.cat(rollouts.rows.supervised).sum())})
        return rollouts

    def completion_seeds(self, purpose: str, update: int, indices: Sequence[int], num_generations: int) -> list[int]:
        """One seed per completion, prompt-major."""
        seed = self.components.seed
        return [derive_seed(seed, purpose, update, index, i) for index in indices for i in range(num_generations)]

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        update = self.counters.updates + 1
        if self.overlap and update < self.updates:
            prompts = self.datamodule.train_dataloader().batch(update)
            assert isinstance(prompts, Prompts)
            self.next_prompts = prompts
        super().training_step(batch, batch_idx)

    def start_next_rollout(self, num_generations: int = 1) -> None:
        """With rollout.overlap=1, starts to sample the next update's completions from the current policy. Call it once
        the completions of this update are sampled."""
        if self.next_prompts is None:
            return
        update, components = self.counters.updates + 1, self.components
        indices = global_indices(local_indices(range(self.batch_size)))
        self.sampled_ahead.start(
            update,
            indices,
            components.engine,
            self.policy,
            components.template,
            repeated(self.next_prompts.select(range(len(indices))), num_generations),
            seeds=self.completion_seeds("rollout", update, indices, num_generations),
            environment=components.environment,
        )
        self.next_prompts = None

    def state(self) -> dict[str, Any]:
        ahead = self.sampled_ahead.state(self.counters.updates) if self.overlap else {}
        return {**super().state(), **({"sampled_ahead": ahead} if ahead else {})}

    def load_state(self, state: Mapping[str, Any]) -> None:
        super().load_state(state)
        self.sampled_ahead.load_state(state.get("sampled_ahead", {}))

    def sample_and_score(
        self,
        model: nn.Module | Mixture,
        prompts: Prompts,
        seeds: Sequence[int],
        episodes: Sequence[Rollout] | None = None,
        *,
        scored: bool = True,
        engine: Engine | None = None,
    ) -> Rollouts:
        """One completion per prompt, with its reward unless `scored` is False; `seeds` has one seed per completion.
        `episodes` are those sampled ahead; `engine` replaces that of the run."""
        components = self.components
        return collect(
            engine or components.engine,
            model,
            components.template,
            prompts,
            seeds=seeds,
            reward=components.reward if scored else None,
            environment=components.environment,
            episodes=episodes,
        )

    def rollout_metrics(self, rollouts: Rollouts) -> Metrics:
        """Metrics of completions; without a reward (only a preference), no reward metrics."""
        found = rollouts.metrics()
        return (
            found
            if self.components.reward
            else {name: v for name, v in found.items() if not name.startswith("reward/")}
        )

    def shaped_rewards(self, rollouts: Rollouts) -> Tensor:
        """Reward of each completion minus the method's penalties, NaN if unscorable, [B]."""
        return rollouts.reward_B - self.missing_eos_penalty * (~rollouts.finished_B)

    def truncated_and_masked(self, rollouts: Rollouts) -> Tensor:
        """True where a completion was truncated and `mask_truncated_completions` excludes it from the loss, [B]."""
        masked_B = ~rollouts.finished_B & self.mask_truncated_completions
        if self.mask_truncated_completions:
            self.accumulate({"completion/masked": Mean(masked_B.sum(), len(masked_B))})
        return masked_B

    def logps(self, model: nn.Module, rows: Rows) -> Tensor:
        """Log-probabilities of the completions under a model, at the sampling temperature, without gradient, [B, T]."""
        return in_micro_batches(
            lambda part: score(model, part, temperature=self.sampling.temperature).logps_BT,
            rows,
            self.tokens_per_micro_batch,
        )

    def reference_logps(self, rows: Rows) -> Tensor:
        """Log-probabilities of the completions under the reference, without gradient, [B, T]."""
        with self.reference_policy.scoring() as frozen:
            return self.logps(frozen, rows)

    def minibatch_indices(self, items: int) -> Iterator[Sequence[int]]:
        """Indices of each mini-batch, over all epochs, in a rollout of `items` over all ranks."""
        for epoch in range(self.epochs):
            source = generator(self.components.seed, "minibatches", self.counters.updates, epoch)
            for chunk in torch.randperm(items, generator=source).chunk(self.minibatches_per_epoch):
                yield chunk.tolist()

    def evaluate(self, batch: Any, index: int, share: Share) -> Metrics:
        """Empty: held-out prompts have no loss. Evaluation tasks measure samples, rewards and KL for every method."""
        return {}

    def validate(self, batch: Prompts, index: int, share: Share) -> Metrics:
        """`evaluate`, and rewards, lengths and finish rate of one completion per prompt, sampled with fixed seeds."""
        sampled = self.sample_held_out(self.policy, batch, "evaluation", index, share)
        return {**self.evaluate(batch, index, share), **(self.rollout_metrics(sampled) if share.counts else {})}

    def sample_held_out(self, model: nn.Module, prompts: Prompts, purpose: str, index: int, share: Share) -> Rollouts:
        """One completion of each prompt of this rank's share of held-out batch `index`, with its reward if it counts;
        the seeds are the same at every evaluation."""
        seeds = [derive_seed(self.components.seed, purpose, index, number) for number in share.items]
        return self.sample_and_score(model, prompts, seeds, scored=share.counts)


def repeated(prompts: Prompts, times: int) -> Prompts:
    """Each prompt several times in a row."""
    return prompts.select([index for index in range(len(prompts)) for _ in range(times)])


def local_indices(indices: Sequence[int]) -> list[int]:
    """Indices of this rank's items (rank::world_size) in its share of the global batch."""
    world, rank = collectives.world_size(), collectives.rank()
    return [index // world for index in indices if index % world == rank]


def global_indices(indices: Iterable[int]) -> list[int]:
    """Indices in the global batch of items of this rank's share, the inverse of `local_indices`."""
    world, rank = collectives.world_size(), collectives.rank()
    return [index * world + rank for index in indices]


def completion_mask(rows: Rows, device: torch.device) -> Tensor:
    """True at completion tokens, left-aligned, [B, T]."""
    counts_B = torch.tensor([int(mask.sum()) for mask in rows.supervised], device=device)
    return torch.arange(int(counts_B.max()), device=device) < counts_B[:, None]
