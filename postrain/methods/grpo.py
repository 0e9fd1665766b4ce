"""Group relative policy optimisation (Shao et al. 2024, DeepSeekMath) and its variants. The loss of a token, the
advantage estimator, and the aggregation of token losses are chosen independently.

    loss = 1/B Σ_i 1/|o_i| Σ_t [ −min(r A_i, clip(r, 1 − clip_low, 1 + clip_high) A_i) + kl_coef · KL(π ‖ π_ref) ]
    A_i  = (reward_i − mean of its group) / standard deviation of its group

`losses.grpo` is this loss, `losses.group_advantages` computes these advantages, group_relative.py samples. With one
pass over a rollout the ratio r is 1, and the gradient is that of REINFORCE with these advantages.

Axes: P prompts, G completions of a prompt, B = P·G completions, T completion tokens.
"""

from __future__ import annotations

import inspect
from dataclasses import field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from postrain.data.kinds.prompt import Prompts
from postrain.errors import ConfigError
from postrain.hardware import collectives
from postrain.losses.advantages import ADVANTAGES, AdvantageName, batch_advantages, normalize_then_sum, overlong_penalty
from postrain.losses.divergence import KLEstimator
from postrain.losses.policy_gradient import LossType, completion_weights
from postrain.losses.policy_losses import POLICY_LOSSES, PolicyLossName, PolicyTerms, policy_terms
from postrain.methods.chosen_function import ChosenFunction, ChosenName, Options, choose, function_of
from postrain.methods.group_relative import GroupExperience, GroupRelative
from postrain.methods.online import global_indices, local_indices
from postrain.methods.policy_gradient import KLPlacement
from postrain.methods.probes import PROBE_MASK, check_advantage, check_advantages, check_loss
from postrain.methods.token_masks import drawn_tokens, high_entropy_tokens, over_all_ranks
from postrain.rewards.base import PreferenceModel, Reward, WeightedSum, compares_group, none_to_nan
from postrain.rollout.collect import Rollouts
from postrain.rollout.engine import greedy
from postrain.types import CountOrZero, Mean, NonNegative, PositiveFraction


def batch_moments(reward_PG: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and Bessel-corrected standard deviation of the scored rewards of the global batch, float64 scalars."""
    mean, variance, count = collectives.moments(reward_PG, ~reward_PG.isnan())
    return mean, (variance * count / (count - 1).clamp(min=1)).sqrt()


LOSS_INPUTS = ("logps", "old_logps", "advantages", "mask")
SELECTION_INPUTS = ("logps", "advantages", "uniform")


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
    loss: PolicyLossName | ChosenName = "clipped"
    """Loss of a token, [B, T]. clipped: PPO's surrogate. gspo: the geometric mean of a completion's ratios. cispo: the
    clipped ratio weights the gradient. gmpo: the geometric mean of clipped ratios. sapo: a sigmoid gate. clip_cov,
    kl_cov: no gradient, or a KL penalty, for tokens that lower the entropy most. Or package.module.function or
    file.py:function, which gets (logps, old_logps, advantages, mask)."""
    loss_options: Options = field(default_factory=dict)
    """Keyword arguments of the loss, such as {delta: 4} of clipped, the upper bound of the ratio at negative
    advantages; null is the default of the loss."""
    advantage: AdvantageName | ChosenName = "group"
    """Advantage of a completion. group: (reward − mean of the group) / standard deviation. leave_one_out: reward − mean
    of the others. opo: reward − mean weighted by length. maxrl: (reward − mean) / mean. remax: reward − that of a
    greedy completion. w_reinforce: 0.1 for a reward above 0.5, else −1. Or package.module.function or file.py:function,
    which gets the rewards [P, G]."""
    advantage_options: Options = field(default_factory=dict)
    """Keyword arguments of the advantage, such as {positive: 0, negative: 1} of w_reinforce."""
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
    top_entropy_quantile: PositiveFraction = 1.0
    """Share of the tokens, those with the highest entropy, that have a gradient (0.2 in the paper, "Beyond the 80/20
    rule"); 1 disables it. Costs a forward pass per rollout."""
    overlong_buffer: CountOrZero = 0
    """Length of the interval before rollout.max_new_tokens, in tokens, over which a penalty grows linearly from 0
    (DAPO's soft overlong punishment); 0 disables it."""
    overlong_penalty: NonNegative = 1.0
    """Penalty subtracted from the reward at rollout.max_new_tokens tokens."""

    def __post_init__(self, *components: Any) -> None:
        check_loss(self.chosen_loss, None if self.loss_selection is None else torch.zeros_like(PROBE_MASK))
        check_advantage(self.chosen_advantage)
        super().__post_init__(*components)

    @cached_property
    def chosen_loss(self) -> ChosenFunction:
        """The function of `loss`."""
        losses = {name: loss.function for name, loss in POLICY_LOSSES.items()}
        selection = {} if self.loss_selection is None else self.loss_selection.options
        return choose(
            "method.loss",
            self.loss,
            function_of("method.loss", self.loss, losses),
            inputs=LOSS_INPUTS,
            offered=["selected"],
            shared={name: (f"method.{name}", getattr(self, name)) for name in ("clip_low", "clip_high")},
            options={name: value for name, value in self.loss_options.items() if name not in selection},
        )

    @cached_property
    def loss_selection(self) -> ChosenFunction | None:
        """The selection of tokens of `loss`, if it has one, with its part of the options."""
        found = POLICY_LOSSES.get(self.loss)
        if found is None or found.select is None:
            return None
        known = inspect.signature(found.select).parameters
        options = {name: value for name, value in self.loss_options.items() if name in known}
        return choose("method.loss", self.loss, found.select, inputs=SELECTION_INPUTS, options=options)

    @cached_property
    def chosen_advantage(self) -> ChosenFunction:
        """The function of `advantage`."""
        scale = None if self.scale_rewards == "group" else self.scale_rewards
        return choose(
            "method.advantage",
            self.advantage,
            function_of("method.advantage", self.advantage, ADVANTAGES),
            inputs=["rewards"],
            offered=["lengths", "greedy_rewards", "batch_std"],
            shared={"scale": ("method.scale_rewards", scale)},
            options=self.advantage_options,
        )

    def smallest_group(self) -> int:
        return 1 if self.advantages_of_equal(1).any() else 2

    def advantages_of_equal(self, group_size: int) -> Tensor:
        """Advantages of two groups whose rewards are all 1 and all 0; of both a greedy completion earned the other
        reward, [2, G]."""
        reward_PG = torch.tensor([[1.0], [0.0]]).expand(2, group_size)
        offered = {"lengths": torch.ones(2, group_size), "greedy_rewards": torch.tensor([0.0, 1.0])}
        return self.chosen_advantage(reward_PG, **offered, batch_std=torch.tensor(1.0))

    def has_gradient(self, reward_PG: Tensor) -> Tensor:
        if self.multi_objective_aggregation == "sum_then_normalize" and self.advantages_of_equal(2).any():
            return ~reward_PG.isnan().all(1)
        return super().has_gradient(reward_PG)

    def conditional_options(self) -> dict[str, str | None]:
        own = self.multi_objective_aggregation == "normalize_then_sum"
        return {
            **super().conditional_options(),
            "overlong_penalty": None if self.overlong_buffer else "method.overlong_buffer above 0",
            "scale_rewards": "method.multi_objective_aggregation=sum_then_normalize" if own else None,
        }

    def check(self) -> None:
        super().check()
        if self.overlong_buffer > self.sampling.max_new_tokens:
            raise ConfigError(
                f"method.overlong_buffer={self.overlong_buffer} is more than "
                f"rollout.max_new_tokens={self.sampling.max_new_tokens}"
            )
        # The penalty has no gradient at ratio 1.
        if self.loss == "kl_cov" and (needed := self.several_steps()):
            raise ConfigError(f"method.loss=kl_cov: its penalty needs several optimizer steps per update; set {needed}")
        kl, overlong = self.kl_coef * (self.kl_in == "reward"), self.overlong_buffer * self.overlong_penalty
        penalties = {"missing_eos_penalty": self.missing_eos_penalty, "overlong_buffer": overlong, "kl_coef": kl}
        reason = {
            "maxrl": "makes rewards negative, by whose mean maxrl divides",
            "w_reinforce": "has no effect on w_reinforce unless it moves a reward across the threshold",
        }.get(self.advantage)
        if reason and (key := next(filter(penalties.get, penalties), None)):
            raise ConfigError(f"method.{key}: {reason}; set method.{key}=0")
        own = self.multi_objective_aggregation == "normalize_then_sum"
        if own and self.advantage != "group":
            raise ConfigError(
                f"method.advantage={self.advantage}: normalize_then_sum has advantages of its own; leave it group"
            )
        if self.turn_level_advantages and self.chosen_advantage.takes("greedy_rewards"):
            raise ConfigError(
                f"method.turn_level_advantages: method.advantage={self.advantage} compares whole episodes; use group"
            )
        if self.turn_level_advantages and own:
            raise ConfigError(
                "method.turn_level_advantages: normalize_then_sum has no reward of a turn; use sum_then_normalize"
            )

    def check_reward(self, reward: Reward | None, preference: PreferenceModel | None) -> None:
        super().check_reward(reward, preference)
        if reward is not None and compares_group(reward) and self.chosen_advantage.takes("greedy_rewards"):
            raise ConfigError(
                f"method.advantage={self.advantage}: scores a greedy completion alone, and {type(reward).__name__} "
                "compares completions; choose another of them"
            )
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
        reward_PG, estimate = reward_PG - penalty_BT.sum(1).view_as(reward_PG), self.chosen_advantage
        if self.multi_objective_aggregation == "normalize_then_sum":
            mean, std = batch_moments(reward_PG)
            return batch_advantages(reward_PG, mean=mean, std=std).view(-1, 1) * mask_BT
        offered: dict[str, Any] = {"lengths": mask_BT.sum(1).view_as(reward_PG)}
        if estimate.takes("greedy_rewards"):
            offered["greedy_rewards"] = self.greedy_rewards(self.prompts.select(range(len(reward_PG))))
        if estimate.takes("batch_std"):
            batch_scale = self.scale_rewards == "batch" or self.advantage != "group"
            offered["batch_std"] = batch_moments(reward_PG)[1] if batch_scale else None
        found_PG = estimate(reward_PG, **offered)
        check_advantages(estimate, reward_PG, found_PG)
        return found_PG.view(-1, 1) * mask_BT

    def greedy_rewards(self, prompts: Prompts) -> Tensor:
        """Reward of a greedy completion of each selected prompt, NaN for others, [P]."""
        local = sorted(local_indices(self.selected))
        greedy_P = torch.full([len(prompts)], torch.nan, device=self.device)
        if local:
            # Not for decoding: a random reward draws by seed.
            seeds = self.completion_seeds("greedy", self.counters.updates, global_indices(local), 1)
            rollouts = self.sample_and_score(
                self.policy, prompts.select(local), seeds, engine=greedy(self.components.engine)
            )
            greedy_P[local] = self.shaped_rewards(rollouts)
            known_B = ~rollouts.reward_B.isnan()
            self.accumulate({"reward/greedy": Mean(rollouts.reward_B[known_B].sum(), known_B.sum())})
        return greedy_P

    def surrogate(self, logps_BT: Tensor, batch: GroupExperience, mask_BT: Tensor) -> PolicyTerms:
        inputs = logps_BT, batch.logps_BT, batch.advantages_BT, mask_BT
        return policy_terms(self.chosen_loss(*inputs, selected=batch.selected_BT), logps_BT - batch.logps_BT)

    def selected_tokens(self, batch: GroupExperience, mask_BT: Tensor) -> GroupExperience:
        if self.top_entropy_quantile < 1:
            kept_BT = high_entropy_tokens(self, batch.rows, mask_BT, self.top_entropy_quantile)
            batch = replace(batch, advantages_BT=batch.advantages_BT * kept_BT)
        if self.loss_selection is None:
            return batch
        groups = global_indices(range(len(mask_BT) // self.group_size))
        completions = [(group, number) for group in groups for number in range(self.group_size)]
        uniform_BT = drawn_tokens(self.components.seed, self.counters.updates, completions, mask_BT)
        values = batch.logps_BT, batch.advantages_BT, uniform_BT
        return replace(batch, selected_BT=over_all_ranks(self.loss_selection, mask_BT, *values))

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
