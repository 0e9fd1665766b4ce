"""REINFORCE with a leave-one-out baseline (Kool et al. 2019; Ahmadian et al. 2024, "Back to Basics"): a completion is
one action, its baseline the mean reward of the prompt's other completions, and its KL the sum over its tokens: off the
reward as published (k1), or in the loss.

Axes: P prompts, G completions of a prompt, B = P·G completions, T completion tokens.
"""

from __future__ import annotations

from torch import Tensor

from postrain.methods.groups import Grouped, centred
from postrain.models.scoring import Comparison, Scores


def leave_one_out(reward_PG: Tensor) -> Tensor:
    """Each reward less the mean of the others in its group, [P, G]; NaN (unscorable) leaves the means and becomes 0.

    r_i − Σ_{j≠i} r_j / (n − 1) = n / (n − 1) · (r_i − mean).
    """
    count_P1 = (~reward_PG.isnan()).sum(1, keepdim=True)
    return centred(reward_PG) * count_P1 / (count_P1 - 1).clamp(min=1)


def completion_ratio(log_ratio_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """π/π_old of the whole completion, [B, 1]."""
    return (log_ratio_BT * mask_BT).sum(1, keepdim=True).exp()


class RLOO(Grouped):
    """Minimises the clipped surrogate of whole completions, their reward less kl_coef · log π/π_ref."""

    def advantages(self, reward_PG: Tensor, penalty_BT: Tensor, mask_BT: Tensor) -> Tensor:
        paid_PG = reward_PG - penalty_BT.sum(1).view_as(reward_PG)
        return leave_one_out(paid_PG).view(-1, 1) * mask_BT

    def kl_in_loss(self, found: Scores | Comparison, ref_logps_BT: Tensor) -> Tensor:
        return super().kl_in_loss(found, ref_logps_BT).sum(1, keepdim=True)

    def ratios(self, log_ratio_BT: Tensor, mask_BT: Tensor) -> Tensor:
        # All tokens of a completion get its ratio: weights of 1/length make one loss of them.
        return completion_ratio(log_ratio_BT, mask_BT)
