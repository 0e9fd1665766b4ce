"""REINFORCE with a leave-one-out baseline (Kool et al. 2019; Ahmadian et al. 2024, "Back to Basics"): a completion is
one action, and its baseline is the mean reward of the prompt's other completions. Its KL is a sum over its tokens,
subtracted from the reward as published (k1) or added to the loss. `losses.rloo` is the loss, `losses.leave_one_out`
computes the advantages.

Axes: P prompts, G completions of a prompt, B = P·G completions, T completion tokens.
"""

from __future__ import annotations

from torch import Tensor

from postrain.losses.advantages import leave_one_out
from postrain.losses.policy_losses import PolicyTerms, clipped
from postrain.methods.group_relative import GroupExperience, GroupRelative
from postrain.models.scoring import ReferenceScores, Scores


class RLOO(GroupRelative):
    """Trains a policy on a reward with a leave-one-out baseline, a completion being one action (Kool et al. 2019;
    Ahmadian et al. 2024, "Back to Basics").

        loss = −min(r A_i, clip(r, 1 − clip_low, 1 + clip_high) A_i)      a mean over completions
        A_i  = R_i − mean R of the prompt's other completions,  R = reward − kl_coef · log π/π_ref

    r is π/π_old of the whole completion.
    """

    def advantages(self, reward_PG: Tensor, penalty_BT: Tensor, mask_BT: Tensor) -> Tensor:
        reward_PG = reward_PG - penalty_BT.sum(1).view_as(reward_PG)
        return leave_one_out(reward_PG).view(-1, 1) * mask_BT

    def kl_penalty(self, found: Scores | ReferenceScores, batch: GroupExperience) -> Tensor:
        return super().kl_penalty(found, batch).sum(1, keepdim=True)

    def surrogate(self, logps_BT: Tensor, batch: GroupExperience, mask_BT: Tensor) -> PolicyTerms:
        # All tokens of a completion have its ratio; weights of 1/length give one loss per completion.
        return clipped(
            logps_BT,
            batch.logps_BT,
            batch.advantages_BT,
            mask_BT,
            importance_sampling_level="completion",
            **self.clips(),
        )
