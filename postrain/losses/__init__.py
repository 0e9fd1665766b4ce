"""Every method's loss as a pure function of tensors and numbers: no model, no config, no state.

    loss = losses.grpo(logps, old_logps, advantages, mask, clip_low=0.2, clip_high=0.28)
    loss = losses.dpo(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta=0.1)

Each returns a differentiable scalar, by default the mean that its paper minimises. The methods in postrain.methods
compute sums, which the training loop divides by the count of the global mini-batch: by calling these functions, or, as
DPO, PPO and the group-relative methods, composed from the same terms (tests/losses/test_public.py: both are equal).
Online DPO uses `dpo` on sampled pairs, pretraining `sft`, reward models `bradley_terry`.
"""

from postrain.losses.advantages import batch_advantages as batch_advantages
from postrain.losses.advantages import gae as gae
from postrain.losses.advantages import group_advantages as group_advantages
from postrain.losses.advantages import leave_one_out as leave_one_out
from postrain.losses.advantages import maxrl_advantages as maxrl_advantages
from postrain.losses.advantages import nash_md_advantages as nash_md_advantages
from postrain.losses.advantages import normalize_then_sum as normalize_then_sum
from postrain.losses.advantages import opo_advantages as opo_advantages
from postrain.losses.advantages import remax_advantages as remax_advantages
from postrain.losses.advantages import reward_to_go as reward_to_go
from postrain.losses.advantages import token_rewards as token_rewards
from postrain.losses.advantages import turn_returns as turn_returns
from postrain.losses.advantages import w_reinforce_advantages as w_reinforce_advantages
from postrain.losses.advantages import whiten as whiten
from postrain.losses.divergence import exact_kl as exact_kl
from postrain.losses.divergence import forward_kl as forward_kl
from postrain.losses.divergence import generalized_jsd as generalized_jsd
from postrain.losses.divergence import kl as kl
from postrain.losses.divergence import skewed_forward_kl as skewed_forward_kl
from postrain.losses.divergence import skewed_reverse_kl as skewed_reverse_kl
from postrain.losses.divergence import with_rest as with_rest
from postrain.losses.dpo_variants import wpo_weights as wpo_weights
from postrain.losses.importance_sampling import importance_weights as importance_weights
from postrain.losses.importance_sampling import sampling_ratio as sampling_ratio
from postrain.losses.policy_gradient import grpo as grpo
from postrain.losses.policy_gradient import nash_md as nash_md
from postrain.losses.policy_gradient import ppo as ppo
from postrain.losses.policy_gradient import ppo_value as ppo_value
from postrain.losses.policy_gradient import reinforce as reinforce
from postrain.losses.policy_gradient import rloo as rloo
from postrain.losses.policy_losses import PolicyTerms as PolicyTerms
from postrain.losses.policy_losses import cispo as cispo
from postrain.losses.policy_losses import clip_cov as clip_cov
from postrain.losses.policy_losses import clipped as clipped
from postrain.losses.policy_losses import clipped_surrogate as clipped_surrogate
from postrain.losses.policy_losses import gmpo as gmpo
from postrain.losses.policy_losses import gspo as gspo
from postrain.losses.policy_losses import kl_cov as kl_cov
from postrain.losses.policy_losses import sapo as sapo
from postrain.losses.preference import alpha_reward as alpha_reward
from postrain.losses.preference import cpo as cpo
from postrain.losses.preference import dpo as dpo
from postrain.losses.preference import ipo as ipo
from postrain.losses.preference import kto as kto
from postrain.losses.preference import kto_baseline as kto_baseline
from postrain.losses.preference import odds_ratio as odds_ratio
from postrain.losses.preference import orpo as orpo
from postrain.losses.preference import simpo as simpo
from postrain.losses.supervised import bradley_terry as bradley_terry
from postrain.losses.supervised import dft as dft
from postrain.losses.supervised import eaft as eaft
from postrain.losses.supervised import l2_distance as l2_distance
from postrain.losses.supervised import prm as prm
from postrain.losses.supervised import sft as sft
from postrain.losses.supervised import token_logps as token_logps
from postrain.losses.token_selection import clip_cov_tokens as clip_cov_tokens
from postrain.losses.token_selection import kl_cov_tokens as kl_cov_tokens
from postrain.losses.token_selection import top_entropy_tokens as top_entropy_tokens
