"""What methods share that learn from what the policy itself writes: sampling, and several passes over a rollout.

Row seeds depend on the place of a prompt in the global batch and on the number of its completion, never on the rank
that draws it. Axes: B completions, prompt-major, T completion tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import reduce
from operator import add
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from postrain.data.kinds.prompt import Prompts
from postrain.hardware import collectives
from postrain.methods.base import Method
from postrain.methods.metrics import Metrics
from postrain.models.scoring import in_micro_batches, pad_T, score
from postrain.ops import derive_seed, generator
from postrain.rollout.collect import Rollouts, collect
from postrain.rollout.engine import Mixture
from postrain.types import ConfigError, Count, Max, Mean, NonNegative, Rows

# Largest difference of two float32 log-probabilities that the order of summation explains.
SAMPLER_TOLERANCE = 1e-2


class Online(Method):
    """Learns from its own completions of prompts."""

    kind: ClassVar[str] = "Prompt"
    needs_reward: ClassVar[bool] = True

    epochs: Count
    """Passes over each rollout."""
    minibatches_per_epoch: Count
    """Optimizer steps in each pass."""
    missing_eos_penalty: NonNegative
    """Taken off the reward of a completion that was cut at the length limit."""
    mask_truncated: bool
    """Whether a completion that was cut at the length limit is left out of the loss."""

    def attached(self) -> None:
        self.sampling = self.parts.engine.sampling
        # True while the first mini-batch of a rollout should find the recorded log-probabilities again.
        self.first_pass = False
        self.step_BT: tuple[Tensor, Tensor, Tensor] | None = None
        self.check()

    def steps_per_update(self) -> int:
        return self.epochs * self.minibatches_per_epoch

    def check(self) -> None:
        """What only the settings together can say."""
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

    def watch(self, ratio_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor) -> None:
        """Keeps what the last micro-batch was made of, for a look at how it is distributed."""
        self.step_BT = ratio_BT.detach(), advantages_BT, mask_BT

    def distributions(self) -> dict[str, Tensor]:
        """Ratios and advantages of the tokens of that micro-batch; {} before the first one."""
        if self.step_BT is None:
            return {}
        ratio_BT, advantages_BT, mask_BT = self.step_BT
        return {"ratio": ratio_BT.expand_as(mask_BT)[mask_BT], "advantage": advantages_BT[mask_BT]}

    def rollout(
        self,
        prompts: Prompts,
        *,
        places: Sequence[int] | None = None,
        copies: int = 1,
        purpose: str = "rollout",
        model: nn.Module | Mixture | None = None,
    ) -> Rollouts:
        """`copies` completions of each prompt, prompt-major, drawn from the policy or from `model`, with rewards.

        `places` are the prompts' in the global batch, by default those of this rank's share.
        """
        if places is None:
            places = range(collectives.rank(), len(prompts) * collectives.world_size(), collectives.world_size())
        seeds = [
            derive_seed(self.parts.seed, purpose, self.counters.updates, place, copy)
            for place in places
            for copy in range(copies)
        ]
        repeated = prompts.select([i for i in range(len(prompts)) for _ in range(copies)])
        episodes = self.episodes(self.policy if model is None else model, repeated, seeds)
        # Of sampled tokens: NaN where the policy is broken, whatever is learned from them.
        self.note({"rollout/logp": Mean(episodes.logps_BT.sum(), torch.cat(episodes.rows.supervised).sum())})
        return episodes

    def episodes(self, model: nn.Module | Mixture, prompts: Prompts, seeds: Sequence[int]) -> Rollouts:
        """A completion of each prompt with its reward; `seeds` has one for each."""
        parts = self.parts
        return collect(
            parts.engine,
            model,
            parts.template,
            prompts,
            seeds=seeds,
            reward=parts.reward,
            environment=parts.environment,
        )

    def measured(self, episodes: Rollouts) -> Metrics:
        """The metrics of completions; none of a reward where there is only a preference."""
        found = episodes.metrics()
        return found if self.parts.reward else {name: v for name, v in found.items() if not name.startswith("reward/")}

    def shaped(self, episodes: Rollouts) -> Tensor:
        """The reward of each completion with the method's own penalties, NaN where nothing could score it, [B]."""
        return episodes.reward_B - self.missing_eos_penalty * (~episodes.finished_B)

    def left_out(self, episodes: Rollouts) -> Tensor:
        """True where a completion was cut at the length limit and the loss leaves such completions out, [B]."""
        out_B = ~episodes.finished_B & self.mask_truncated
        if self.mask_truncated:
            self.note({"completion/left_out": Mean(out_B.sum(), len(out_B))})
        return out_B

    def logps(self, model: nn.Module, rows: Rows) -> Tensor:
        """Log-probabilities of the completions under a model, at the sampling temperature, without gradient, [B, T]."""
        return in_micro_batches(
            lambda part: score(model, part, temperature=self.sampling.temperature).logps_BT,
            rows,
            self.micro_batch_tokens,
        )

    def old_logps(self, episodes: Rollouts) -> Tensor:
        """Log-probabilities under the policy that sampled, [B, T], recorded or computed; sets `first_pass`."""
        # In lower precision engine and scorer round differently, and a ratio has to start at 1.
        self.first_pass = self.parts.engine.exact and self.in_float32()
        if self.first_pass:
            return episodes.logps_BT
        logps_BT = self.logps(self.policy, episodes.rows)
        self.note({"rollout/logp_error": sampler_error(episodes.logps_BT, logps_BT, strict=False)})
        return logps_BT

    def note_first_pass(self, recorded_BT: Tensor, own_BT: Tensor) -> None:
        """Before the policy has moved it has to find the recorded log-probabilities again."""
        if self.first_pass:
            error = sampler_error(recorded_BT, own_BT.detach(), strict=not self.dropout)
            self.note({"rollout/logp_error": error})

    def reference_logps(self, rows: Rows) -> Tensor:
        """The same under the reference."""
        with self.reference_policy.scoring() as frozen:
            return self.logps(frozen, rows)

    def passes(self, items: int) -> Iterator[Sequence[int]]:
        """Epochs × mini-batches: the places of a mini-batch in a rollout of so many items over all ranks."""
        for epoch in range(self.epochs):
            source = generator(self.parts.seed, "minibatches", self.counters.updates, epoch)
            for chunk in torch.randperm(items, generator=source).chunk(self.minibatches_per_epoch):
                yield chunk.tolist()

    def evaluate(self, batch: Any, index: int) -> Metrics:
        """Nothing to predict on held-out prompts: their samples, rewards and KL are measured for every method."""
        return {}

    def validate(self, batch: Prompts, index: int) -> Metrics:
        """Also the reward and the shape of a completion of each prompt, drawn with the same seeds every time."""
        seeds = [derive_seed(self.parts.seed, "evaluation", index, place) for place in range(len(batch))]
        return {**self.evaluate(batch, index), **self.measured(self.episodes(self.policy, batch, seeds))}


def own_share(places: Sequence[int]) -> list[int]:
    """Where this rank keeps those items of a global batch that it has, its share being rank::ranks."""
    world, rank = collectives.world_size(), collectives.rank()
    return [place // world for place in places if place % world == rank]


def mask_of(rows: Rows, device: torch.device) -> Tensor:
    """True at the completion tokens of each row, left-aligned, [B, T]."""
    counts_B = torch.tensor([int(mask.sum()) for mask in rows.supervised], device=device)
    return torch.arange(int(counts_B.max()), device=device) < counts_B[:, None]


def sampler_error(recorded_BT: Tensor, own_BT: Tensor, *, strict: bool) -> Max:
    """Largest difference between log-probabilities recorded while sampling and the policy's own, 0 outside the mask.

    Raises ConfigError where `strict` (float32 throughout) and it is more than rounding: the ratio would not start at 1.
    """
    error = float((recorded_BT - own_BT).abs().max())
    if strict and error > SAMPLER_TOLERANCE:
        raise ConfigError(
            f"rollout: sampled log-probabilities differ by {error:.2g} from the policy's own in float32, so the engine "
            "and the model do not compute the same"
        )
    return Max(error)


def joined(parts: Sequence[Rollouts]) -> Rollouts:
    """Rollouts one after the other, their tensors widened to the longest."""
    names = [f.name for f in fields(Rollouts)]
    return Rollouts(**{name: _joined([getattr(part, name) for part in parts]) for name in names})


def _joined(values: list[Any]) -> Any:
    if isinstance(values[0], Tensor):
        width = max(value.shape[-1] for value in values)
        return torch.cat([pad_T(value, width) if value.ndim > 1 else value for value in values])
    return None if values[0] is None else reduce(add, values)
