"""Every method's loss as a pure function of tensors and numbers: no model, no config, no state.

    loss = losses.grpo(logps, old_logps, advantages, mask, clip_low=0.2, clip_high=0.28)
    loss = losses.dpo(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta=0.1)

Each returns a differentiable scalar, by default the mean that its paper minimises. The methods of postrain.methods call
the same functions for sums, which the training loop divides by the count of the whole step. Online DPO minimises `dpo`
over fresh pairs, pretraining minimises `sft`, a reward model `bradley_terry`.
"""

from postrain.losses.advantages import (
    gae,
    group_advantages,
    group_centred,
    group_std,
    has_variance,
    leave_one_out,
    nash_md_advantages,
    overlong_penalty,
    reward_to_go,
    token_rewards,
    whiten,
)
from postrain.losses.divergence import adapt_kl_coef, exact_kl, kl
from postrain.losses.policy_gradient import (
    cispo,
    clipped_surrogate,
    completion_weights,
    grpo,
    importance_ratio,
    nash_md,
    ppo,
    ppo_value,
    reinforce,
    rloo,
)
from postrain.losses.preference import cpo, dpo, ipo, kto, kto_baseline, log_odds, odds_ratio, orpo, simpo
from postrain.losses.supervised import bradley_terry, l2_distance, prm, sft, token_logps

__all__ = [
    "adapt_kl_coef",
    "bradley_terry",
    "cispo",
    "clipped_surrogate",
    "completion_weights",
    "cpo",
    "dpo",
    "exact_kl",
    "gae",
    "group_advantages",
    "group_centred",
    "group_std",
    "grpo",
    "has_variance",
    "importance_ratio",
    "ipo",
    "kl",
    "kto",
    "kto_baseline",
    "l2_distance",
    "leave_one_out",
    "log_odds",
    "nash_md",
    "nash_md_advantages",
    "odds_ratio",
    "orpo",
    "overlong_penalty",
    "ppo",
    "ppo_value",
    "prm",
    "reinforce",
    "reward_to_go",
    "rloo",
    "sft",
    "simpo",
    "token_logps",
    "token_rewards",
    "whiten",
]
