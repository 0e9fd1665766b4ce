"""Group relative policy optimisation (Shao et al. 2024, DeepSeekMath) and its family: how advantages are scaled, how
tokens are summed up, what the ratio is taken over and how it is clipped are four independent choices.

With one pass over a rollout the ratio is 1, and the gradient is REINFORCE's with these advantages. Axes: P prompts,
G completions of a prompt, B = P·G completions, T completion tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from postrain.hardware import collectives
from postrain.methods.groups import Grouped, Rollout, centred, group_std
from postrain.methods.kl_penalty import KLPlace
from postrain.ops import KLEstimator, clipped_surrogate, surrogate_clips
from postrain.rollout.collect import Rollouts
from postrain.types import ConfigError, CountOrZero, NonNegative, Positive

EPSILON = 1e-4
"""Added to a standard deviation before it divides."""


# Advantages ----------------------------------------------------------------------------------------------------------


def batch_std(reward_PG: Tensor) -> Tensor:
    """Bessel-corrected standard deviation of what could be scored in the whole global batch, a scalar."""
    _, variance, count = collectives.moments(reward_PG, ~reward_PG.isnan())
    return (variance * count / (count - 1).clamp(min=1)).sqrt()


SCALES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "group": lambda reward_PG: group_std(reward_PG) + EPSILON,
    "batch": lambda reward_PG: batch_std(reward_PG).to(reward_PG) + EPSILON,
    "none": lambda reward_PG: torch.ones(()),
}
"""What the difference to the group's mean is divided by: the group's spread (Shao et al. 2024), the batch's (Liu et al.
2025, "Tricks or traps"), nothing (Liu et al. 2025, Dr. GRPO)."""


# Ratios --------------------------------------------------------------------------------------------------------------


def token_ratio(log_ratio_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """π/π_old of each token, [B, T]."""
    return log_ratio_BT.exp()


def sequence_ratio(log_ratio_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """(π/π_old of the completion)^(1/length), one number a completion, [B, 1] (Zheng et al. 2025, GSPO, eq. 7)."""
    return ((log_ratio_BT * mask_BT).sum(1, keepdim=True) / mask_BT.sum(1, keepdim=True)).exp()


RATIOS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"token": token_ratio, "sequence": sequence_ratio}


# Surrogates ----------------------------------------------------------------------------------------------------------


def cispo(ratio_BT: Tensor, advantages_BT: Tensor, logps_BT: Tensor, low: float, high: float) -> Tensor:
    """−stop_gradient(clip(r, 1 − low, 1 + high))·A·log π, [B, T]: no token loses its gradient (MiniMax 2025, eq. 4)."""
    return -ratio_BT.clamp(1 - low, 1 + high).detach() * advantages_BT * logps_BT


def cispo_clips(ratio_BT: Tensor, advantages_BT: Tensor, low: float, high: float) -> Tensor:
    """True where `cispo` bounds the weight of a token's gradient, whichever way the advantage points, [B, T]."""
    return ((ratio_BT < 1 - low) | (ratio_BT > 1 + high)) & (advantages_BT != 0)


# The rest ------------------------------------------------------------------------------------------------------------


def overlong(lengths_B: Tensor, limit: int, buffer: int) -> Tensor:
    """0 up to limit − buffer tokens, falling evenly to −1 at the limit, [B] (Yu et al. 2025, DAPO, eq. 13)."""
    return -((lengths_B - (limit - buffer)) / max(buffer, 1)).clamp(0, 1)


class GRPO(Grouped):
    """Minimises the clipped surrogate with group-relative advantages, + kl_coef · KL.

    As published, the KL is k3 in the loss (Shao et al. 2024, eq. 4). Its value is unbiased, its gradient is not: it is
    that of KL(reference ‖ policy), close to that of KL(policy ‖ reference) while the two are close, and weak where the
    policy has put mass that the reference does not have. `kl_estimator=exact` or `k2` has the right one. Off the reward
    (`kl_in=reward`, k1) the completion's KL is part of what the group compares and is scaled with it.
    """

    published_kl: ClassVar[frozenset[tuple[KLEstimator, KLPlace]]] = frozenset({("k3", "loss")})

    scale: Literal["group", "batch", "none"]
    """What advantages are divided by: the spread of rewards in the group, in the batch, or nothing."""
    aggregation: Literal["grpo", "bnpo", "dr_grpo", "dapo"]
    """How token losses are summed up: mean over completions of their means; mean over the tokens of a mini-batch; sum
    over completions times max_new_tokens; mean over the tokens of the whole rollout."""
    ratio: Literal["token", "sequence"]
    """What is compared with the policy that sampled: each token, or the completion (GSPO)."""
    objective: Literal["clipped", "cispo"]
    """Whether a clipped ratio takes the gradient away, or only bounds its weight."""
    ratio_ceiling: Positive | None
    """Bounds the ratio where the advantage is negative; null does not."""
    overlong_buffer: CountOrZero
    """Tokens before max_new_tokens over which a growing penalty sets in."""
    overlong_penalty: NonNegative
    """That penalty at max_new_tokens."""

    def check(self) -> None:
        super().check()
        if self.overlong_buffer > self.sampling.max_new_tokens:
            raise ConfigError(
                f"method.overlong_buffer={self.overlong_buffer} is more than "
                f"rollout.max_new_tokens={self.sampling.max_new_tokens}"
            )
        if self.ratio_ceiling is not None and self.ratio_ceiling <= 1 + self.clip_high:
            raise ConfigError(
                f"method.ratio_ceiling={self.ratio_ceiling}: bounds what the clip leaves alone; give more than "
                f"1 + method.clip_high = {1 + self.clip_high:g}"
            )
        if self.objective == "cispo" and self.ratio_ceiling is not None:
            raise ConfigError(
                "method.ratio_ceiling: method.objective=cispo bounds the ratio by clip_high; leave it null"
            )

    def shaped(self, episodes: Rollouts) -> Tensor:
        if not self.overlong_buffer:
            return super().shaped(episodes)
        lengths_B = torch.tensor([int(mask.sum()) for mask in episodes.rows.supervised], device=self.device)
        late_B = overlong(lengths_B, self.sampling.max_new_tokens, self.overlong_buffer)
        return super().shaped(episodes) + self.overlong_penalty * late_B

    def advantages(self, reward_PG: Tensor, penalty_BT: Tensor, mask_BT: Tensor) -> Tensor:
        paid_PG = reward_PG - penalty_BT.sum(1).view_as(reward_PG)
        return (centred(paid_PG) / SCALES[self.scale](paid_PG)).view(-1, 1) * mask_BT

    def ratios(self, log_ratio_BT: Tensor, mask_BT: Tensor) -> Tensor:
        return RATIOS[self.ratio](log_ratio_BT, mask_BT)

    def surrogate(self, ratio_BT: Tensor, logps_BT: Tensor, advantages_BT: Tensor) -> Tensor:
        if self.objective == "cispo":
            return cispo(ratio_BT, advantages_BT, logps_BT, self.clip_low, self.clip_high)
        return clipped_surrogate(ratio_BT, advantages_BT, self.clip_low, self.clip_high, self.ratio_ceiling or math.inf)

    def clips(self, ratio_BT: Tensor, advantages_BT: Tensor) -> Tensor:
        if self.objective == "cispo":
            return cispo_clips(ratio_BT, advantages_BT, self.clip_low, self.clip_high)
        return surrogate_clips(ratio_BT, advantages_BT, self.clip_low, self.clip_high, self.ratio_ceiling or math.inf)

    def weights(self, lengths_B: Tensor, counted_B: Tensor) -> Tensor:
        match self.aggregation:
            case "grpo":
                return counted_B / lengths_B
            case "bnpo":
                return counted_B.float()
            case "dr_grpo":
                return counted_B / self.sampling.max_new_tokens
            case "dapo":
                tokens = collectives.all_sum((lengths_B * counted_B).sum())
                return counted_B * (len(self.kept) * self.group_size / tokens.clamp(min=1))

    def denominator(self, batch: Rollout) -> int:
        if self.aggregation != "bnpo":
            return super().denominator(batch)
        return sum(
            int(mask.sum()) for mask, weight in zip(batch.rows.supervised, batch.weight_B, strict=True) if weight
        )
