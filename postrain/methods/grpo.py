"""Group relative policy optimisation (Shao et al. 2024, DeepSeekMath) and its variants. Advantage scaling, loss
aggregation, the level of the importance ratio and its clipping are independent options.

    loss = 1/B Σ_i 1/|o_i| Σ_t [ −min(r A_i, clip(r, 1 − clip_low, 1 + clip_high) A_i) + kl_coef · KL(π ‖ π_ref) ]
    A_i  = (reward_i − mean of its group) / standard deviation of its group

`losses.grpo` is this loss, `losses.group_advantages` computes these advantages, group_relative.py samples. With one
pass over a rollout the ratio r is 1, and the gradient is that of REINFORCE with these advantages.

Axes: P prompts, G completions of a prompt, B = P·G completions, T completion tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from postrain.errors import ConfigError
from postrain.hardware import collectives
from postrain.losses.advantages import batch_advantages, group_advantages, normalize_then_sum, overlong_penalty
from postrain.losses.divergence import KLEstimator
from postrain.losses.policy_gradient import LossType, Objective, SurrogateOptions, completion_weights
from postrain.methods.group_relative import GroupExperience, GroupRelative
from postrain.methods.policy_gradient import KLPlacement
from postrain.rewards.base import PreferenceModel, Reward, WeightedSum, none_to_nan
from postrain.rollout.collect import Rollouts
from postrain.types import CountOrZero, NonNegative, Positive


def batch_moments(reward_PG: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and Bessel-corrected standard deviation of the scored rewards of the global batch, float64 scalars."""
    mean, variance, count = collectives.moments(reward_PG, ~reward_PG.isnan())
    return mean, (variance * count / (count - 1).clamp(min=1)).sqrt()


class GRPO(GroupRelative):
    """Trains a policy on a reward without a critic: advantages are relative to the completions of the same prompt (Shao
    et al. 2024, DeepSeekMath).

        loss = 1/B Σ_i 1/|o_i| Σ_t [ −min(r A_i, clip(r, 1 − clip_low, 1 + clip_high) A_i) + kl_coef · KL(π ‖ π_ref) ]
        A_i  = (reward_i − mean of its group) / standard deviation of its group

    As published, the KL is k3 in the loss (Shao et al. 2024, eq. 4). Its value is unbiased, but its gradient is that of
    KL(reference ‖ policy). The two gradients are similar while policy and reference are; for tokens that only the
    policy finds likely, that of k3 is too weak. `kl_estimator=exact` and `k2` have the gradient of
    KL(policy ‖ reference). With `kl_in=reward` (k1), the KL of a completion is subtracted from its reward before
    advantages are computed and scaled.
    """

    published_kl: ClassVar[frozenset[tuple[KLEstimator, KLPlacement]]] = frozenset({("k3", "loss")})

    kl_estimator: KLEstimator = "k3"
    kl_in: KLPlacement = "loss"
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Divisor of advantages: the standard deviation of rewards in the group (group) or in the batch (batch), or 1
    (none)."""
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize"
    """Advantages of a weighted sum of rewards. sum_then_normalize: of the sum. normalize_then_sum: each reward is
    normalised in its group before the weighted sum, which is then normalised in the batch (GDPO); it replaces
    scale_rewards and needs a WeightedSum, such as reward=weighted."""
    loss_type: LossType = "grpo"
    """Aggregation of token losses. grpo: mean over completions of their token means. bnpo: mean over the tokens of a
    mini-batch. dr_grpo: sum / (completions · rollout.max_new_tokens). dapo: mean over the tokens of the
    rollout."""
    importance_sampling_level: Literal["token", "sequence"] = "token"
    """Level of the importance ratio. token: a ratio per token. sequence: the geometric mean over the completion (GSPO,
    with small clips: clip_low 3e-4, clip_high 4e-4)."""
    objective: Objective = "clipped"
    """clipped: tokens with a clipped ratio have no gradient (PPO). cispo: the clipped ratio is a constant weight of the
    gradient (CISPO, with clip_low 1.0)."""
    delta: Positive | None = None
    """Two-sided clip: upper bound of the ratio at negative advantages; null disables it."""
    overlong_buffer: CountOrZero = 0
    """Length of the interval before rollout.max_new_tokens, in tokens, over which a penalty grows linearly from 0
    (DAPO's soft overlong punishment); 0 disables it."""
    overlong_penalty: NonNegative = 1.0
    """Penalty subtracted from the reward at rollout.max_new_tokens tokens."""

    def check(self) -> None:
        super().check()
        if self.overlong_buffer > self.sampling.max_new_tokens:
            raise ConfigError(
                f"method.overlong_buffer={self.overlong_buffer} is more than "
                f"rollout.max_new_tokens={self.sampling.max_new_tokens}"
            )
        if self.delta is not None and self.delta <= 1 + self.clip_high:
            raise ConfigError(
                f"method.delta={self.delta}: expected a bound above the upper clip, "
                f"1 + method.clip_high = {1 + self.clip_high:g}"
            )
        if self.objective == "cispo" and self.delta is not None:
            raise ConfigError("method.delta: method.objective=cispo bounds the ratio by clip_high; leave it null")

        if self.turn_level_advantages and self.multi_objective_aggregation == "normalize_then_sum":
            raise ConfigError(
                "method.turn_level_advantages: normalize_then_sum has no reward of a turn; use sum_then_normalize"
            )

    def check_reward(self, reward: Reward | None, preference: PreferenceModel | None) -> None:
        super().check_reward(reward, preference)
        if self.multi_objective_aggregation == "normalize_then_sum" and not isinstance(reward, WeightedSum):
            raise ConfigError(
                "method.multi_objective_aggregation=normalize_then_sum normalises the parts of a weighted sum of "
                "rewards; choose one, such as reward=weighted or reward=reasoning"
            )

    def normalized_sum(self, rollouts: Rollouts) -> Tensor:
        """`normalize_then_sum` of the parts of the reward, and of an environment's with weight 1, [B]."""
        reward = self.components.reward
        assert isinstance(reward, WeightedSum)
        weights = {**reward.weights, **({} if rollouts.environment_stats is None else {"environment": 1.0})}
        values = [none_to_nan([part[name] for part in rollouts.parts]).view(-1, self.group_size) for name in weights]
        return normalize_then_sum(torch.stack(values), torch.tensor(list(weights.values()))).view(-1).to(self.device)

    def shaped_rewards(self, rollouts: Rollouts) -> Tensor:
        if self.multi_objective_aggregation == "normalize_then_sum":
            rollouts = replace(rollouts, reward_B=self.normalized_sum(rollouts))
        if not self.overlong_buffer:
            return super().shaped_rewards(rollouts)
        lengths_B = torch.tensor([int(mask.sum()) for mask in rollouts.rows.supervised], device=self.device)
        penalty_B = overlong_penalty(lengths_B, limit=self.sampling.max_new_tokens, buffer=self.overlong_buffer)
        return super().shaped_rewards(rollouts) + self.overlong_penalty * penalty_B

    def advantages(self, reward_PG: Tensor, penalty_BT: Tensor, mask_BT: Tensor) -> Tensor:
        reward_PG = reward_PG - penalty_BT.sum(1).view_as(reward_PG)
        if self.multi_objective_aggregation == "normalize_then_sum":
            mean, std = batch_moments(reward_PG)
            return batch_advantages(reward_PG, mean=mean, std=std).view(-1, 1) * mask_BT
        std = batch_moments(reward_PG)[1] if self.scale_rewards == "batch" else None
        return group_advantages(reward_PG, scale=self.scale_rewards, batch_std=std).view(-1, 1) * mask_BT

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
