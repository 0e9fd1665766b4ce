"""Advantages from rewards: group baselines, GAE with a critic, whitening and reward penalties.

Axes: P prompts, G completions of a prompt, K rewards, B completions, T completion tokens (left-aligned, padded). A NaN
reward is unscorable: means skip it, and its advantage is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from postrain.precision import widen
from postrain.types import NonNegative, Positive

EPSILON = 1e-4
"""Added to standard deviations in divisors."""


def has_variance(rewards: Tensor) -> Tensor:
    """True for groups whose scored rewards differ, [P, G] → [P]; for G = 1, for scored ones."""
    known_PG = ~rewards.isnan()
    if rewards.shape[1] == 1:
        return known_PG[:, 0]
    highest_P = rewards.masked_fill(~known_PG, -torch.inf).amax(1)
    return highest_P - rewards.masked_fill(~known_PG, torch.inf).amin(1) > 1e-6


def group_centred(rewards: Tensor) -> Tensor:
    """Each reward minus the mean of its group, [P, G]."""
    # float64, where the device has it, keeps small differences of large rewards. Zero-variance groups are exactly 0,
    # despite rounding.
    rewards_PG = widen(rewards)
    centred_PG = (rewards_PG - rewards_PG.nanmean(1, keepdim=True)).nan_to_num(0.0)
    return (centred_PG * has_variance(rewards)[:, None]).to(rewards)


def group_std(rewards: Tensor) -> Tensor:
    """Bessel-corrected standard deviation of the scored rewards of each group, [P, G] → [P, 1]; 0 for one reward."""
    count_P1 = (~rewards.isnan()).sum(1, keepdim=True)
    return ((group_centred(rewards) ** 2).sum(1, keepdim=True) / (count_P1 - 1).clamp(min=1)).sqrt()


def group_advantages(
    rewards: Tensor,
    *,
    scale: Literal["group", "batch", "none"] = "group",
    batch_std: Tensor | None = None,
    epsilon: Positive = EPSILON,
) -> Tensor:
    """(r − mean of the group) / (standard deviation + epsilon), [P, G]: GRPO's advantages.

    `scale` selects the standard deviation: group (Shao et al. 2024, DeepSeekMath), batch (Liu et al. 2025, "Tricks or
    traps"; give `batch_std` if the batch is distributed over ranks), or none, which divides by 1 (Liu et al. 2025,
    Dr. GRPO).
    """
    centred_PG = group_centred(rewards)
    if scale == "none":
        return centred_PG
    if scale == "group":
        return centred_PG / (group_std(rewards) + epsilon)
    if batch_std is None:
        batch_std = widen(rewards[~rewards.isnan()]).std()
    return centred_PG / (batch_std.to(rewards) + epsilon)


def normalize_then_sum(rewards: Tensor, weights: Tensor) -> Tensor:
    """Σ_k w_k (r_k − mean of its group) / (its standard deviation in the group + 1e-4), [K, P, G] and [K] → [P, G].

    GDPO (Liu et al. 2026, arXiv 2601.05242, eq. 4 and 5), TRL's multi_objective_aggregation="normalize_then_sum". A
    reward that is NaN, or equal in the whole group, adds 0; NaN where all rewards are.
    """
    normalized = [weight * group_advantages(reward_PG) for weight, reward_PG in zip(weights, rewards, strict=True)]
    return torch.stack(normalized).sum(0).masked_fill(rewards.isnan().all(0), torch.nan)


def batch_advantages(rewards: Tensor, *, mean: Tensor, std: Tensor) -> Tensor:
    """(r − mean) / (standard deviation + 1e-4) with the moments of the batch, [P, G] (Liu et al. 2026, GDPO, eq. 6).

    0 for zero-variance groups, which have nothing to compare.
    """
    centred_PG = (widen(rewards) - mean).nan_to_num(0.0) * has_variance(rewards)[:, None]
    return centred_PG.to(rewards) / (std.to(rewards) + EPSILON)


def leave_one_out(rewards: Tensor) -> Tensor:
    """Each reward minus the mean of the others in its group, [P, G]: RLOO's advantages (Kool et al. 2019; Ahmadian et
    al. 2024). r_i − Σ_{j≠i} r_j / (n − 1) = n / (n − 1) · (r_i − mean)."""
    count_P1 = (~rewards.isnan()).sum(1, keepdim=True)
    return group_centred(rewards) * count_P1 / (count_P1 - 1).clamp(min=1)


def turn_returns(turn_rewards: Tensor, other_rewards: Tensor) -> Tensor:
    """The reward of each turn and all later ones, [B, K], plus those that belong to no turn, [B], → [B, K].

    K turns; `turn_rewards` is NaN for turns that an episode lacks, and so is the return. Summed from the end: returns
    of rewards of at least 0 are at least 0 despite rounding.
    """
    returns_BK = reward_to_go(turn_rewards.nan_to_num(0.0)) + other_rewards[:, None]
    return returns_BK.masked_fill(turn_rewards.isnan(), torch.nan)


def opo_advantages(rewards: Tensor, lengths: Tensor) -> Tensor:
    """r_i − Σ_j l_j r_j / Σ_j l_j, [P, G]: the baseline with the least variance of the gradient of whole completions,
    whose squared norm grows with their length l (Hao et al. 2025, OPO, arXiv 2505.23585)."""
    known_PG = ~rewards.isnan()
    weight_PG = widen(lengths) * known_PG
    baseline_P1 = (weight_PG * widen(rewards).nan_to_num(0.0)).sum(1, keepdim=True) / weight_PG.sum(1, keepdim=True)
    centred_PG = (widen(rewards) - baseline_P1).nan_to_num(0.0)
    return (centred_PG * has_variance(rewards)[:, None]).to(rewards)


def maxrl_advantages(rewards: Tensor) -> Tensor:
    """(r_i − mean of the group) / mean of the group, [P, G] (Tajwar et al. 2026, MaxRL, arXiv 2602.02710).

    With rewards of 0 and 1 the gradient is that of log P(correct), truncated at the G-th order, instead of that of
    P(correct): a prompt's weight grows as its pass rate falls. Raises ValueError for negative rewards.
    """
    if (rewards < 0).any():
        raise ValueError("maxrl divides by the mean reward of a group: expected rewards of at least 0")
    mean_P1 = rewards.nanmean(1, keepdim=True).nan_to_num(0.0)
    return group_centred(rewards) / mean_P1.masked_fill(mean_P1 == 0, 1.0)


def remax_advantages(rewards: Tensor, greedy_rewards: Tensor) -> Tensor:
    """r_i − reward of the prompt's greedy completion [P], [P, G] (Li et al. 2023, ReMax, arXiv 2310.10505); 0 if
    one of the two is unscorable."""
    return (rewards - greedy_rewards[:, None]).nan_to_num(0.0)


def w_reinforce_advantages(
    rewards: Tensor, *, positive: NonNegative = 0.1, negative: NonNegative = 1.0, threshold: float = 0.5
) -> Tensor:
    """`positive` for a reward above the threshold, else −`negative`, [P, G]; 0 if unscorable.

    Weighted REINFORCE of right and wrong completions (Zhu et al. 2025, W-REINFORCE, arXiv 2506.01347, λ = 0.1).
    positive=1, negative=0 is positive sample reinforcement (PSR), positive=0, negative=1 is negative sample
    reinforcement (NSR). There is no baseline: groups of equal rewards have a gradient too.
    """
    signed_PG = torch.where(rewards > threshold, positive, -negative).to(rewards)
    return signed_PG.masked_fill(rewards.isnan(), 0.0)


AdvantageName = Literal["group", "leave_one_out", "opo", "maxrl", "remax", "w_reinforce"]
ADVANTAGES: Mapping[str, Callable[..., Tensor]] = {
    "group": group_advantages,
    "leave_one_out": leave_one_out,
    "opo": opo_advantages,
    "maxrl": maxrl_advantages,
    "remax": remax_advantages,
    "w_reinforce": w_reinforce_advantages,
}
"""The estimators of `method.advantage`, functions of rewards [P, G]. They get the arguments that they name: `lengths`
[P, G] in tokens, `greedy_rewards` [P], `batch_std`; others are the options of `method.advantage_options`."""


def reward_to_go(values: Tensor) -> Tensor:
    """Sum of the values of a token and all later ones, [B, T]."""
    return values.flip(1).cumsum(1).flip(1)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0, lam: float = 0.95) -> Tensor:
    """Generalised advantage estimates of completion tokens, [B, T] (Schulman et al. 2016, eq. 16).

    `values[b, t]` is the critic's value before token t is sampled. The value after the last token is 0, because a
    completion is a whole episode. 0 outside the mask.
    """
    advantages_BT = torch.zeros_like(rewards)
    following_B = torch.zeros_like(rewards[:, 0])
    next_value_B = torch.zeros_like(following_B)
    for t in reversed(range(rewards.shape[1])):
        real_B = mask[:, t]
        delta_B = rewards[:, t] + gamma * next_value_B - values[:, t]
        following_B = torch.where(real_B, delta_B + gamma * lam * following_B, 0.0)
        next_value_B = torch.where(real_B, values[:, t], 0.0)
        advantages_BT[:, t] = following_B
    return advantages_BT


def whiten(
    values: Tensor, mask: Tensor, *, mean: Tensor | None = None, variance: Tensor | None = None, shift_mean: bool = True
) -> Tensor:
    """(values − mean) / sqrt(variance + 1e-8), with the mean added back unless `shift_mean`; 0 outside the mask.

    Moments are those of the masked values, computed in float64; give them if the batch is distributed over ranks. In
    float32, the rounding error of the mean of values around 1000 is no longer small against their spread.
    """
    known_N = widen(values[mask])
    mean = known_N.mean() if mean is None else mean
    variance = known_N.var(correction=0) if variance is None else variance
    whitened = (widen(values) - mean) * torch.rsqrt(variance + 1e-8)
    return ((whitened if shift_mean else whitened + mean) * mask).to(values)


def token_rewards(rewards: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """−kl_coef · KL of every token, plus the completion's reward [B] at its last token, [B, T] (Ziegler et al. 2019,
    eq. 2)."""
    rewards_BT = -kl_coef * kl * mask
    return rewards_BT.scatter_add(1, last_token(mask)[:, None], rewards[:, None].to(rewards_BT))


def last_token(mask: Tensor) -> Tensor:
    """Index of the last True of each row, [B]; rows are left-aligned and have at least one."""
    return mask.sum(1).long() - 1


def overlong_penalty(lengths: Tensor, *, limit: int, buffer: int) -> Tensor:
    """0 up to limit − buffer tokens, decreasing linearly to −1 at the limit, [B] (Yu et al. 2025, DAPO, eq. 13)."""
    return -((lengths - (limit - buffer)) / max(buffer, 1)).clamp(0, 1)


def nash_md_advantages(preferences: Tensor, log_ratios: Tensor, mask: Tensor, *, beta: float) -> Tensor:
    """P(y beats y') − ½ − β · Σ log π/π_ref of a token and all later ones, [B, T] (Munos et al. 2023, section 7.2).

    `preferences` [B] is P(completion beats the mixture's), `log_ratios` [B, T] is log π/π_ref of the tokens. Log-ratios
    of earlier tokens are omitted: they do not change the expected gradient. NaN (no preference) counts as ½.
    """
    centred_B = (preferences - 0.5).nan_to_num(0.0)
    return (centred_B[:, None] - beta * reward_to_go(log_ratios * mask)) * mask
