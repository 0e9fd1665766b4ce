"""Proximal policy optimisation for language models: rollouts, a KL penalty to the reference policy, a learned critic,
clipped policy and value losses over several epochs (Schulman et al. 2017; Ziegler et al. 2019; Ouyang et al. 2022).

`losses.ppo` and `losses.ppo_value` are the terms of the loss, `losses.gae` and `losses.whiten` compute A and R.
Episodes without a score have no advantage and no value target; whitening and means skip them. Running reward
normalisation is left out: it makes runs incomparable.

Axes: B episodes, T completion tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from postrain.data.kinds.prompt import Prompts
from postrain.errors import ConfigError
from postrain.hardware import collectives
from postrain.losses.advantages import gae, token_rewards
from postrain.losses.divergence import adapt_kl_coef, kl
from postrain.losses.policy_gradient import ppo_value, weighted_logps
from postrain.losses.policy_losses import clipped
from postrain.losses.reduction import reduce
from postrain.methods.learning_rates import LearningRates
from postrain.methods.metrics import Metrics, explained_variance, kl_metrics, step_metrics
from postrain.methods.online import local_indices
from postrain.methods.policy_gradient import PolicyGradient
from postrain.methods.rollout_correction import sampler_error
from postrain.models.micro_batches import in_micro_batches
from postrain.models.parts import ValueHead, trunk, unwrapped
from postrain.models.scoring import ReferenceScores, score_with_reference, values
from postrain.types import Batch, Count, CountOrZero, Fraction, LossSum, Max, Mean, NonNegative, Positive, Rows, Size


def critic_metrics(values_BT: Tensor, returns_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor) -> Metrics:
    """Mean absolute advantage, and the critic's explained variance of the returns, over all ranks."""
    _, spread, tokens = collectives.moments(returns_BT, mask_BT)
    _, error, _ = collectives.moments(returns_BT - values_BT, mask_BT)
    return {
        "advantage/mean_abs": Mean((advantages_BT.abs() * mask_BT).sum(), mask_BT.sum()),
        "value/explained_variance": Mean(explained_variance(spread, error), tokens.clamp(max=1)),
    }


@dataclass(frozen=True)
class Experience(Batch):
    """Rollouts with all constants of the loss, [B, T] over completion tokens."""

    rows: Rows
    logps_BT: Tensor
    """Old log-probabilities, under the sampling policy."""
    ref_logps_BT: Tensor
    values_BT: Tensor
    """Old values, of the critic before the update."""
    advantages_BT: Tensor
    """Whitened over the global batch."""
    returns_BT: Tensor
    """Value targets: unwhitened advantage + old value."""
    in_loss_B: Tensor
    """False for unscorable episodes, and for truncated ones with mask_truncated_completions; excluded from the loss."""
    importance_weights_BT: Tensor | None = None
    """π_old/π_sampler, truncated or masked; None if the engine samples from the policy."""


class PPO(PolicyGradient):
    """Maximises reward − kl_coef · KL(policy ‖ reference) with a learned critic and clipped policy-gradient steps over
    several epochs (Schulman et al. 2017; Ziegler et al. 2019; Ouyang et al. 2022).

        loss = −min(r A, clip(r, 1 − clip_low, 1 + clip_high) A)                       a mean over tokens
               + value_coef · ½ max((v − R)², (v_clipped − R)²)

    r is the importance ratio π/π_old of a token, A its whitened GAE advantage, v the value head's output, R the return.
    """

    expected_change: ClassVar[tuple[str, float]] = ("gold/mood", 0.1)
    headline: ClassVar[tuple[str, str, str]] = ("reward/total", "kl/exact", "eval/reward/total")
    rates: ClassVar[LearningRates] = LearningRates(base=3e-6, nano=2e-4)

    updates: Count = 20
    batch_size: Size = 64
    epochs: Count = 2
    minibatches_per_epoch: Count = 2
    kl_coef: NonNegative = 0.1
    clip_low: Positive = 0.2
    """Lower clip ε_low of the importance ratio: 1 − ε_low."""
    clip_high: Positive | None = None
    """Upper clip ε_high of the importance ratio: 1 + ε_high. null is clip_low."""
    dual_clip: Positive | None = None
    """Upper bound of the ratio at negative advantages (Ye et al. 2020, arXiv 1912.09729), above 1 + clip_high, as
    `loss_options.delta` of GRPO; null disables it."""
    value_clip: Positive = 0.2
    """Clip range of the value around the old value."""
    value_coef: NonNegative = 0.1
    """Weight of the value loss."""
    gamma: Fraction = 1.0
    """Discount factor γ of future rewards."""
    lam: Fraction = 0.95
    """λ of generalised advantage estimation."""
    lam_critic: Fraction | None = None
    """λ of the critic's returns (decoupled GAE of VC-PPO and VAPO: 1.0, returns without the critic's own bias); null is
    method.lam."""
    adaptive_kl_target: Positive | None = None
    """Target of the adaptive KL controller (Ziegler et al. 2019), which changes kl_coef after every rollout: mean
    KL(policy ‖ reference) of an episode [nats]. null keeps kl_coef fixed. The early stop of epochs is target_kl."""
    adaptive_kl_horizon: Count = 10000
    """Horizon of the adaptive KL controller in episodes: larger values change kl_coef more slowly."""
    target_kl: Positive | None = None
    """Stop the epochs over a rollout early: at the first mini-batch whose mean KL (k3) to the old policy exceeds this
    [nats/token], before its gradient is applied. null disables it."""
    critic: Literal["shared", "separate"] = "shared"
    """shared: a value head on the policy's trunk. separate: a value head on a copy of the trunk."""
    critic_warmup: CountOrZero = 0
    """Number of updates at the beginning that train only the critic; 0 disables it."""

    def needs_reference(self) -> bool:
        return True

    def conditional_options(self) -> dict[str, str | None]:
        return {
            **super().conditional_options(),
            "adaptive_kl_horizon": None if self.adaptive_kl_target else "method.adaptive_kl_target",
            # The controller multiplies the coefficient.
            "adaptive_kl_target": None if self.kl_coef else "method.kl_coef above 0",
            "target_kl": self.several_steps(),
        }

    def check(self) -> None:
        super().check()
        least = 1 + (self.clip_high or self.clip_low)
        if self.dual_clip is not None and self.dual_clip <= least:
            raise ConfigError(f"method.dual_clip={self.dual_clip:g}: expected above 1 + method.clip_high = {least:g}")

    def on_model_attached(self) -> None:
        super().on_model_attached()
        width = unwrapped(self.policy).config.get_text_config().hidden_size
        self.value_head = ValueHead(width)
        # A separate trunk is trained, so it has to be a submodule.
        self.critic_trunk = copy.deepcopy(trunk(self.policy)) if self.critic == "separate" else None
        self.exceeds_target_kl = False

    def on_fit_start(self) -> None:
        super().on_fit_start()
        # Not in `check`: Trainer(max_steps=) sets the updates.
        if self.critic_warmup >= self.updates:
            raise ConfigError(
                f"method.critic_warmup={self.critic_warmup}: the policy is not trained in any of "
                f"method.updates={self.updates}; give fewer"
            )

    def trained_models(self) -> list[nn.Module]:
        return [self.policy, *([] if self.critic_trunk is None else [self.critic_trunk])]

    def prepare(self, batch: Prompts) -> Experience:
        """Rollouts → rewards → values → GAE advantages and returns."""
        rollouts = self.rollout(batch)
        self.start_next_rollout()
        found = in_micro_batches(self.compare, rollouts.rows, self.tokens_per_micro_batch)
        # The first ratio must be 1: old log-probs are recomputed if the engine's are not exact (top-k, bf16).
        recorded = self.samples_from_policy()
        logps_BT = rollouts.logps_BT if recorded else found.logps_BT
        if self.critic_trunk is not None:
            found = replace(
                found, values_BT=in_micro_batches(self.separate_values, rollouts.rows, self.tokens_per_micro_batch)
            )
        kl_BT = self.penalty(logps_BT, found)
        in_loss_B = ~rollouts.reward_B.isnan() & ~self.truncated_and_masked(rollouts)
        in_loss_BT = found.mask_BT & in_loss_B[:, None]
        reward_B = self.shaped_rewards(rollouts).nan_to_num(0.0)
        rewards_BT = token_rewards(reward_B, kl_BT, found.mask_BT, self.coef if self.kl_in == "reward" else 0.0)
        advantages_BT = gae(rewards_BT, found.values_BT, found.mask_BT, gamma=self.gamma, lam=self.lam)
        critic_BT = advantages_BT
        if self.lam_critic is not None:
            critic_BT = gae(rewards_BT, found.values_BT, found.mask_BT, gamma=self.gamma, lam=self.lam_critic)
        returns_BT = (critic_BT + found.values_BT) * in_loss_BT
        self.accumulate(rollouts.metrics() | kl_metrics(found))
        self.accumulate(critic_metrics(found.values_BT, returns_BT, advantages_BT, in_loss_BT))
        self.accumulate({"entropy": Mean(-found.logps_BT.sum(), found.mask_BT.sum())})
        self.episode_kl = kl_BT.sum(1)
        self.accumulate({"kl/coef": Max(self.coef)})
        self.accumulate({"rollout/logp_error": sampler_error(rollouts.logps_BT, found.logps_BT, strict=recorded)})
        whitened_BT = collectives.whiten_globally(advantages_BT, in_loss_BT)
        tensors = (logps_BT, found.ref_logps_BT, found.values_BT, whitened_BT, returns_BT)
        return Experience(rollouts.rows, *tensors, in_loss_B, self.importance_weights(rollouts, logps_BT))

    def recomputes_logps(self) -> bool:
        return False  # `compare` computes them for every rollout

    def compare(self, rows: Rows) -> ReferenceScores:
        """Log-probabilities of policy and reference, and values of a shared critic."""
        return score_with_reference(
            self.policy, self.reference_policy, rows, temperature=self.sampling.temperature, head=self.shared_head()
        )

    def shared_head(self) -> Callable[[Tensor], Tensor] | None:
        """The value head of a shared critic; critic_warmup detaches its input from the trunk."""
        if self.critic_trunk is not None:
            return None
        return (lambda states: self.value_head(states.detach())) if self.warming_up() else self.value_head

    def separate_values(self, rows: Rows) -> Tensor:
        """Values of a separate critic."""
        assert self.critic_trunk is not None
        return values(self.critic_trunk, rows, self.value_head)

    def warming_up(self) -> bool:
        """True during critic_warmup."""
        return self.counters.updates < self.critic_warmup

    def penalty(self, logps_BT: Tensor, found: ReferenceScores) -> Tensor:
        """The KL penalty of each token by `kl_estimator`, [B, T]."""
        if self.kl_estimator == "exact":
            return found.kl_BT
        return kl(logps_BT, found.ref_logps_BT, self.kl_estimator) * found.mask_BT

    def adapt_kl(self, kl_B: Tensor) -> None:
        """Updates the KL coefficient towards adaptive_kl_target, once per rollout."""
        if self.adaptive_kl_target is None:
            return
        total, episodes = collectives.all_sum(torch.stack([kl_B.sum(), torch.ones_like(kl_B).sum()]))
        self.coef = adapt_kl_coef(
            self.coef,
            float(total / episodes),
            target=self.adaptive_kl_target,
            samples=int(episodes),
            horizon=self.adaptive_kl_horizon,
        )

    def minibatches(self, prepared: Experience) -> Iterator[Experience]:
        """Epochs × mini-batches, until target_kl is exceeded; then adapts the KL coefficient."""
        in_loss, self.exceeds_target_kl = prepared.in_loss_B.tolist(), False
        for indices in self.minibatch_indices(self.batch_size):
            self.kl_before = self.old_policy_kl()
            yield prepared.select([index for index in local_indices(indices) if in_loss[index]])
            if self.exceeds_target_kl:
                break
        self.adapt_kl(self.episode_kl)
        self.adapt_entropy()

    def may_step(self) -> bool:
        self.exceeds_target_kl = self.target_kl is not None and self.minibatch_kl(self.kl_before) > self.target_kl
        return not self.exceeds_target_kl

    def kl_in_this_loss(self) -> bool:
        return super().kl_in_this_loss() and not self.warming_up()

    def old_policy_kl(self) -> Mean:
        """Sum and count of k3 to the old policy over the mini-batches so far, on this rank."""
        found = self.accumulated.get("kl/old_policy", Mean(0.0, 0.0))
        assert isinstance(found, Mean)
        return Mean(float(found.total), float(found.count))

    def minibatch_kl(self, before: Mean) -> float:
        """Mean k3 to the old policy, over all ranks, of the mini-batch since `before`."""
        now = self.old_policy_kl()
        parts = collectives.gather(Mean(now.total - before.total, now.count - before.count))
        return sum(parts[1:], start=parts[0]).value()

    def loss_sum(self, batch: Experience) -> LossSum:
        found = self.scored(batch.rows, self.shared_head())
        batch, mask_BT = batch.narrowed(found.mask_BT.shape[1]), found.mask_BT
        values_BT = found.values_BT if self.critic_trunk is None else self.separate_values(batch.rows)
        assert values_BT is not None
        assert found.entropy_BT is not None
        value_loss = ppo_value(
            values_BT, batch.values_BT, batch.returns_BT, mask_BT, clip=self.value_clip, reduction="sum"
        )
        terms = clipped(
            weighted_logps(found.logps_BT, batch.importance_weights_BT),
            batch.logps_BT,
            batch.advantages_BT,
            mask_BT,
            clip_low=self.clip_low,
            clip_high=self.clip_high or self.clip_low,
            delta=self.dual_clip,
        )
        policy_loss = reduce(terms.loss_BT, "sum", mask_BT)
        total = self.value_coef * value_loss
        if not self.warming_up():
            total = total + policy_loss
            if self.entropy_weight:
                total = total - self.entropy_weight * found.entropy_BT.sum()
            if self.kl_in_this_loss():
                total = total + self.coef * reduce(self.kl_term(found, batch.ref_logps_BT), "sum", mask_BT)
        metrics = step_metrics(found.logps_BT - batch.logps_BT, terms, mask_BT)
        metrics["entropy/exact"] = Mean(found.entropy_BT.detach().sum(), mask_BT.sum())
        self.record_step(terms.ratio, batch.advantages_BT, mask_BT)
        tokens = mask_BT.sum()
        metrics |= {"policy_loss": Mean(policy_loss.detach(), tokens), "value_loss": Mean(value_loss.detach(), tokens)}
        return LossSum(total, metrics)

    def state(self) -> dict[str, Any]:
        return {**super().state(), "coef": self.coef}

    def load_state(self, state: Mapping[str, Any]) -> None:
        super().load_state(state)
        self.coef = state["coef"]
