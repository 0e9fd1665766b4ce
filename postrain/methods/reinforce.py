"""REINFORCE++ (Hu et al. 2025): REINFORCE with PPO's clipped token ratio and advantages whitened over the global batch,
without a critic. With groups ("REINFORCE++-baseline"), the mean reward of the group is the baseline and a k2 KL is in
the loss. With `kl_in=reward`, the k1 KL of a token and all later ones is subtracted from its return. `losses.reinforce`
is the loss.

Axes: P prompts, G completions of a prompt, B = P·G completions, T completion tokens.
"""

from __future__ import annotations

from torch import Tensor

from postrain.hardware import collectives
from postrain.losses.advantages import group_centred, reward_to_go
from postrain.losses.divergence import KLEstimator
from postrain.methods.group_relative import GroupRelative
from postrain.methods.policy_gradient import KLPlacement
from postrain.rollout.collect import Rollouts


class Reinforce(GroupRelative):
    """Trains a policy on a reward with advantages whitened over the global batch, without a critic (Hu et al. 2025,
    REINFORCE++).

        loss = −min(r A, clip(r, 1 − clip_low, 1 + clip_high) A) + kl_coef · KL(π ‖ π_ref)
        A    = whitened over all tokens of the batch: reward − mean of its group (the reward itself with group_size=1)
    """

    kl_estimator: KLEstimator = "k2"
    kl_in: KLPlacement = "loss"

    def smallest_group(self) -> int:
        return 1

    def advantages(self, reward_PG: Tensor, penalty_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Before whitening."""
        centred_PG = group_centred(reward_PG) if self.group_size > 1 else reward_PG.nan_to_num(0.0)
        return (centred_PG.view(-1, 1) - reward_to_go(penalty_BT)) * mask_BT

    def token_advantages(self, rollouts: Rollouts, reward_PG: Tensor, penalty_BT: Tensor, mask_BT: Tensor) -> Tensor:
        # Of all turns at once: their tokens are one batch.
        found_BT = super().token_advantages(rollouts, reward_PG, penalty_BT, mask_BT)
        return collectives.whiten_globally(found_BT, mask_BT & ~reward_PG.isnan().view(-1, 1))
