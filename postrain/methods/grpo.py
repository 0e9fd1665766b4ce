"""Group relative policy optimisation (Shao et al. 2024, DeepSeekMath) and its family: advantage scaling,
loss aggregation, the level of the importance ratio and its clipping are four independent options.

    loss = 1/B Σ_i 1/|o_i| Σ_t [ −min(r A_i, clip(r, 1 − clip_low, 1 + clip_high) A_i) + kl_coef · KL(π ‖ π_ref) ]
    A_i  = (reward_i − mean of its group) / standard deviation of its group

`losses.grpo` is this loss and `losses.group_advantages` these advantages; group_relative.py has the rollout around
them. With one pass over a rollout the ratio r is 1, and the gradient is REINFORCE's with these advantages. Axes: P
prompts, G completions of a prompt, B = P·G completions, T completion tokens.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from postrain.errors import ConfigError
from postrain.hardware import collectives
from postrain.losses.advantages import group_advantages, overlong_penalty
from postrain.losses.divergence import KLEstimator
from postrain.losses.policy_gradient import LossType, Objective, SurrogateOptions, completion_weights
from postrain.methods.group_relative import GroupExperience, GroupRelative
from postrain.methods.online import KLPlacement
from postrain.rollout.collect import Rollouts
from postrain.types import CountOrZero, NonNegative, Positive


def batch_std(reward_PG: Tensor) -> Tensor:
    """Bessel-corrected standard deviation of the scored rewards of the whole global batch, a float64 scalar."""
    _, variance, count = collectives.moments(reward_PG, ~reward_PG.isnan())
    return (variance * count / (count - 1).clamp(min=1)).sqrt()


class GRPO(GroupRelative):
    """Trains a policy on a reward without a critic: advantages compare the completions of one prompt (Shao et al. 2024,
    DeepSeekMath).

        loss = 1/B Σ_i 1/|o_i| Σ_t [ −min(r A_i, clip(r, 1 − clip_low, 1 + clip_high) A_i) + kl_coef · KL(π ‖ π_ref) ]
        A_i  = (reward_i − mean of its group) / standard deviation of its group

    As published, the KL is k3 in the loss (Shao et al. 2024, eq. 4). Its value is unbiased; its gradient is
    that of KL(reference ‖ policy). This is close to the gradient of KL(policy ‖ reference) while the two models are
    close, and too weak where the policy puts mass that the reference does not have. `kl_estimator=exact` and `k2` have
    the gradient of KL(policy ‖ reference). With `kl_in=reward` (k1) the KL of a completion is subtracted from its
    reward before the group is compared, and is scaled with it.
    """

    published_kl: ClassVar[frozenset[tuple[KLEstimator, KLPlacement]]] = frozenset({("k3", "loss")})

    kl_estimator: KLEstimator = "k3"
    kl_in: KLPlacement = "loss"
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """What advantages are divided by: the standard deviation of rewards in the group or in the batch, or nothing."""
    loss_type: LossType = "grpo"
    """How token losses are summed up. grpo: mean over completions of their means. bnpo: mean over the tokens of a
    mini-batch. dr_grpo: sum over completions times max_new_tokens. dapo: mean over the tokens of the whole rollout."""
    importance_sampling_level: Literal["token", "sequence"] = "token"
    """What is compared with the sampling policy: each token, or the completion (GSPO, whose clips are small: clip_low
    3e-4, clip_high 4e-4)."""
    objective: Objective = "clipped"
    """Whether a clipped ratio takes the gradient away (clipped) or only bounds its weight (cispo, whose lower clip is
    far: clip_low 1.0)."""
    delta: Positive | None = None
    """Two-sided clip: bounds the ratio where the advantage is negative; null does not."""
    overlong_buffer: CountOrZero = 0
    """Tokens before rollout.max_new_tokens over which a growing penalty sets in (DAPO's soft overlong penalty); 0 is
    off."""
    overlong_penalty: NonNegative = 1.0
    """That penalty at rollout.max_new_tokens."""

    def check(self) -> None:
        super().check()
        if self.overlong_buffer > self.sampling.max_new_tokens:
            raise ConfigError(
                f"method.overlong_buffer={self.overlong_buffer} is more than "
                f"rollout.max_new_tokens={self.sampling.max_new_tokens}"
            )
        if self.delta is not None and self.delta <= 1 + self.clip_high:
            raise ConfigError(
                f"method.delta={self.delta}: bounds what the clip leaves alone; give more than "
                f"1 + method.clip_high = {1 + self.clip_high:g}"
            )
        if self.objective == "cispo" and self.delta is not None:
            raise ConfigError("method.delta: method.objective=cispo bounds the ratio by clip_high; leave it null")

    def shaped_rewards(self, rollouts: Rollouts) -> Tensor:
        if not self.overlong_buffer:
            return super().shaped_rewards(rollouts)
        lengths_B = torch.tensor([int(mask.sum()) for mask in rollouts.rows.supervised], device=self.device)
        late_B = overlong_penalty(lengths_B, limit=self.sampling.max_new_tokens, buffer=self.overlong_buffer)
        return super().shaped_rewards(rollouts) + self.overlong_penalty * late_B

    def advantages(self, reward_PG: Tensor, penalty_BT: Tensor, mask_BT: Tensor) -> Tensor:
        reward_PG = reward_PG - penalty_BT.sum(1).view_as(reward_PG)
        spread = batch_std(reward_PG) if self.scale_rewards == "batch" else None
        return group_advantages(reward_PG, scale=self.scale_rewards, batch_std=spread).view(-1, 1) * mask_BT

    def surrogate_options(self) -> SurrogateOptions:
        return {
            "delta": self.delta,
            "importance_sampling_level": self.importance_sampling_level,
            "objective": self.objective,
        }

    def weights(self, lengths_B: Tensor, counted_B: Tensor) -> Tensor:
        return completion_weights(
            lengths_B,
            counted_B,
            self.loss_type,
            max_tokens=self.sampling.max_new_tokens,
            tokens=collectives.all_sum((lengths_B * counted_B).sum()),
            completions=len(self.selected) * self.group_size,
        )

    def denominator(self, batch: GroupExperience) -> int:
        if self.loss_type != "bnpo":
            return super().denominator(batch)
        return sum(
            int(mask.sum()) for mask, weight in zip(batch.rows.supervised, batch.weight_B, strict=True) if weight
        )
