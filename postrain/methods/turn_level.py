"""The turns of a rollout in an environment, for advantages that compare them one by one.

Axes: B completions, T completion tokens, K turns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from postrain.losses.advantages import turn_returns
from postrain.rollout.collect import Rollouts


def turns_of(
    rollouts: Rollouts, reward_B: Tensor, mask_BT: Tensor, count: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """`turn_returns` of each of `count` turns, [B], NaN for episodes without it; the tokens of the turn, [B, T]; and
    those of this turn and all later ones. `reward_B` are the rewards of whole episodes."""
    assert rollouts.turn_tokens is not None
    assert rollouts.turn_rewards is not None
    device = mask_BT.device
    known = [rewards + (math.nan,) * (count - len(rewards)) for rewards in rollouts.turn_rewards]
    # The sum of an episode as in its reward: the difference is exactly 0 if there is no other reward.
    summed_B = torch.tensor([float(sum(rewards)) for rewards in rollouts.turn_rewards], device=device)
    return_BK = turn_returns(torch.tensor(known, device=device), reward_B - summed_B)
    last_BK = torch.tensor([[*counts, *[0] * (count - len(counts))] for counts in rollouts.turn_tokens]).cumsum(1)
    position_T = torch.arange(mask_BT.shape[1])
    turn_BT = (position_T[:, None] >= last_BK[:, None, :]).sum(2).to(device)
    for k in range(count):
        yield return_BK[:, k], mask_BT & (turn_BT == k), mask_BT & (turn_BT >= k)
