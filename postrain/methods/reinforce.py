"""REINFORCE++ (Hu et al. 2025): REINFORCE with PPO's clipped token ratio and advantages whitened over the whole batch
instead of a critic. With groups (its "baseline" form) the group's mean is the baseline and a k2 KL stands in the loss;
with `kl_in=reward` the KL of all tokens still to come is taken off each token's return.

Axes: P prompts, G completions of a prompt, B = P·G completions, T completion tokens.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from postrain import parallel
from postrain.methods.groups import Grouped, centred
from postrain.ops import kl_estimate, to_come


class Reinforce(Grouped):
    """Minimises the clipped surrogate with globally whitened returns."""

    smallest_group: ClassVar[int] = 1

    kl_in: Literal["loss", "reward"]
    """Whether the KL is added to the loss (k2) or taken off the reward (k1)."""

    def advantages(self, reward_PG: Tensor, kl_BT: Tensor, mask_BT: Tensor) -> Tensor:
        scored_PG = ~reward_PG.isnan()
        baseline_free = centred(reward_PG) if self.group_size > 1 else reward_PG.nan_to_num(0.0)
        returns_BT = baseline_free.view(-1, 1) * mask_BT
        if self.kl_in == "reward":
            returns_BT = returns_BT - self.kl_coef * to_come(kl_BT) * mask_BT
        return parallel.whiten_globally(returns_BT, mask_BT & scored_PG.view(-1, 1))

    def kl_in_loss(self, logps_BT: Tensor, ref_logps_BT: Tensor) -> Tensor | None:
        return kl_estimate(logps_BT, ref_logps_BT, "k2") if self.kl_in == "loss" else None
