"""Base of critic-free policy gradients with group-relative advantages: completions of one prompt are compared.

    prepare      sample group_size completions of each prompt → rewards → `advantages` → weights of the completions
    loss_sum     (surrogate + kl_coef · KL − entropy_coef · entropy) of each token, times its completion's weight

A subclass defines the advantages and may change the surrogate, the tokens or the weights. The function of the same name
in postrain.losses is its loss with the default settings, composed of the same terms. Zero-variance groups carry no
gradient; `dynamic_sampling` replaces them with groups of further prompts (Yu et al. 2025, DAPO, eq. 11). The loss is
always divided by `batch_size` groups: if too few groups have a gradient, zero-variance groups fill the batch, where
DAPO's code stops the run. `group/with_gradient` logs the number of groups with a gradient.

Completions without a gradient skip the forward pass. Axes: P prompts, G completions of a prompt, B = P·G
completions, prompt-major, T completion tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor

from postrain.data.kinds.prompt import Prompts
from postrain.errors import ConfigError
from postrain.hardware import collectives
from postrain.losses.advantages import group_std, has_variance
from postrain.losses.divergence import kl
from postrain.losses.policy_gradient import completion_weights, weighted_logps, weighted_sum
from postrain.losses.policy_losses import PolicyTerms, clipped, importance_ratio
from postrain.methods.curriculum import CurriculumPrompts
from postrain.methods.learning_rates import LearningRates
from postrain.methods.metrics import kl_metrics, sampled_kl_metrics, step_metrics
from postrain.methods.online import completion_mask, global_indices, local_indices
from postrain.methods.turn_level import turns_of
from postrain.models.micro_batches import concatenated, in_micro_batches
from postrain.models.scoring import ReferenceScores, Scores, score_with_reference
from postrain.rollout.collect import Rollouts
from postrain.rollout.environment import SingleTurn
from postrain.types import Batch, Count, CountOrZero, LossSum, LRSchedule, Mean, Positive, Rows


@dataclass(frozen=True)
class GroupExperience(Batch):
    """Completions with all constants of the loss, [B, T] over completion tokens."""

    rows: Rows
    logps_BT: Tensor
    """Old log-probabilities, under the sampling policy."""
    ref_logps_BT: Tensor
    """Log-probabilities under the reference; zeros without a KL penalty."""
    advantages_BT: Tensor
    weight_B: Tensor
    """Weight of the completion's token losses in the sum."""
    in_loss_B: Tensor
    """False for completions without a gradient, which skip the forward pass."""
    importance_weights_BT: Tensor | None = None
    """π_old/π_sampler, truncated or masked; None if the engine samples from the policy."""
    selected_BT: Tensor | None = None
    """Tokens that the loss treats differently; None if it selects none."""

    def cost(self) -> list[int]:
        in_loss = self.in_loss_B.tolist()
        sharing = Counter(row for row, counts in zip(self.rows.row_ids, in_loss, strict=True) if counts)
        rows = zip(self.rows.ids, self.rows.supervised, self.rows.row_ids, in_loss, strict=True)
        # Completions of a group share the cost of the prompt, but not of environment observations.
        return [
            len(ids) - int(mask.long().argmax()) * (sharing[row] - 1) // sharing[row] if counts else 0
            for ids, mask, row, counts in rows
        ]


class GroupRelative(CurriculumPrompts):
    """Base of GRPO, RLOO and REINFORCE++: policy gradient with group-relative advantages."""

    headline: ClassVar[tuple[str, str, str]] = ("reward/total", "completion/length", "eval/reward/total")
    rates: ClassVar[LearningRates] = LearningRates(base=1e-6, nano=5e-4, kl=0.03)
    expected_change: ClassVar[tuple[str, float]] = ("gold/correct", 0.1)

    updates: Count = 60
    schedule: LRSchedule = "linear"
    clip_low: Positive | None = None
    """Lower clip ε_low of the importance ratio: 1 − ε_low. null is that of the loss: 0.2 for the clipped surrogate."""
    clip_high: Positive | None = None
    """Upper clip ε_high of the importance ratio: 1 + ε_high. null is that of the loss: 0.2 for the clipped
    surrogate."""
    use_bias_correction_kl: bool = False
    """Multiply k3 in the loss by the importance ratio of the token: its gradient becomes that of KL(policy ‖
    reference), not of KL(reference ‖ policy) (DeepSeek-AI 2025, DeepSeek-V3.2, arXiv 2512.02556, eq. 7; TRL's default).
    The other estimators need no correction and are refused with it."""
    dynamic_sampling: CountOrZero = 2
    """Maximum number of further batches of prompts sampled per update to replace zero-variance groups (DAPO); 0
    disables it. Groups that are not replaced stay in the batch, without a gradient except that of a KL in the loss. An
    update takes batch_size · (1 + dynamic_sampling) prompts from the data, sampled or not, so that its prompts do not
    depend on earlier rewards."""

    turn_level_advantages: bool = False
    """Compare the turns of an environment one by one: the advantage of a turn is that of its reward and all later ones
    among the same turns of the group (turn-level credit assignment, Zeng et al. 2025). false compares whole
    episodes."""

    def needs_reference(self) -> bool:
        return self.kl_coef > 0

    def check(self) -> None:
        super().check()
        if self.group_size < self.smallest_group():
            raise ConfigError(
                f"method.group_size={self.group_size}: advantages need several completions of each prompt; "
                f"give at least {self.smallest_group()}"
            )
        if self.turn_level_advantages and isinstance(self.components.environment, SingleTurn):
            raise ConfigError("method.turn_level_advantages: has no effect without an environment; leave it out")
        if self.use_bias_correction_kl and (self.kl_estimator, self.kl_in) != ("k3", "loss"):
            raise ConfigError(
                f"method.use_bias_correction_kl: corrects k3 in the loss, not method.kl_estimator={self.kl_estimator} "
                f"with method.kl_in={self.kl_in}; set method.use_bias_correction_kl=false, or method.kl_estimator=k3 "
                "and method.kl_in=loss"
            )

    def has_biased_kl(self) -> bool:
        return super().has_biased_kl() and not self.use_bias_correction_kl

    def smallest_group(self) -> int:
        """The smallest group_size with which advantages are not all 0."""
        return 2

    def items_per_update(self) -> int:
        return self.batch_size * (1 + self.dynamic_sampling)

    # What a subclass defines -------------------------------------------------------------------------------------

    def advantages(self, reward_PG: Tensor, penalty_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Advantage of each token, [B, T]; `penalty_BT` is the KL penalty in the reward, 0 with kl_in=loss."""
        raise TypeError(f"{type(self).__name__} does not define its advantages")

    def surrogate(self, logps_BT: Tensor, batch: GroupExperience, mask_BT: Tensor) -> PolicyTerms:
        """The loss of each token; by default PPO's clipped surrogate at token level."""
        return clipped(logps_BT, batch.logps_BT, batch.advantages_BT, mask_BT, **self.clips())

    def selected_tokens(self, batch: GroupExperience, mask_BT: Tensor) -> GroupExperience:
        """The rollout with a selection of the tokens in `mask_BT`; by default all are treated alike."""
        return batch

    def weights(self, lengths_B: Tensor, counted_B: Tensor) -> Tensor:
        """Weight of each completion's tokens, [B]; by default 1/length, the mean over its tokens."""
        return completion_weights(lengths_B, counted_B)

    def kl_penalty(self, found: Scores | ReferenceScores, batch: GroupExperience) -> Tensor:
        """The KL in the loss, of each token, [B, T], or of whole completions, [B, 1]."""
        kl_BT = self.kl_term(found, batch.ref_logps_BT)
        if not self.use_bias_correction_kl:
            return kl_BT
        return kl_BT * importance_ratio(found.logps_BT - batch.logps_BT, found.mask_BT)

    def clips(self) -> dict[str, Any]:
        """The clips that are set."""
        clips = {"clip_low": self.clip_low, "clip_high": self.clip_high}
        return {name: value for name, value in clips.items() if value is not None}

    # From prompts to mini-batches --------------------------------------------------------------------------------

    def prepare(self, batch: Prompts) -> GroupExperience:
        """Rollouts → rewards → group-relative advantages → completion weights."""
        batch = self.curriculum_prompts() if self.curriculum.active else batch
        rollouts, self.selected = self.sample_groups(batch)
        rows, mask_BT = rollouts.rows, completion_mask(rollouts.rows, self.device)
        logps_BT = self.old_logps(rollouts)
        ref_logps_BT = self.reference_logps_and_kl(rows, logps_BT, mask_BT) if self.coef else torch.zeros_like(logps_BT)
        reward_kl_coef = self.coef if self.kl_in == "reward" else 0.0
        penalty_BT = reward_kl_coef * kl(logps_BT, ref_logps_BT, "k1") * mask_BT
        reward_PG = self.shaped_rewards(rollouts).view(-1, self.group_size)
        counted_B = self.is_selected(len(rollouts))
        # NaN excludes unselected groups from statistics of the batch: their number must not change advantages.
        selected_PG = reward_PG.where(counted_B.view_as(reward_PG), torch.nan)
        self.prompts = batch
        advantages_BT = self.token_advantages(rollouts, selected_PG, penalty_BT, mask_BT)
        advantages_BT = advantages_BT.masked_fill(selected_PG.isnan().view(-1, 1), 0.0)
        weight_B = self.weights(mask_BT.sum(1), counted_B & ~self.truncated_and_masked(rollouts))
        importance_weights_BT = self.importance_weights(rollouts, logps_BT)
        weighted_BT = advantages_BT if importance_weights_BT is None else advantages_BT * importance_weights_BT
        has_gradient_B = (weighted_BT != 0).any(1) | self.kl_in_this_loss() | (self.entropy_weight > 0)
        self.accumulate(rollouts.metrics())
        self.log_groups(rollouts.reward_B.view_as(reward_PG), reward_PG, logps_BT, mask_BT)
        tokens = (mask_BT & counted_B[:, None]).sum()
        self.accumulate({"advantage/mean_abs": Mean((advantages_BT.abs() * mask_BT).sum(), tokens)})
        in_loss_B = (weight_B != 0) & has_gradient_B
        tensors = (logps_BT, ref_logps_BT, advantages_BT, weight_B, in_loss_B)
        found = GroupExperience(rows, *tensors, importance_weights_BT)
        return self.selected_tokens(found, mask_BT & in_loss_B[:, None])

    def token_advantages(self, rollouts: Rollouts, reward_PG: Tensor, penalty_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """`advantages`, with turn_level_advantages those of each turn: of its return, its length, and its KL penalty
        and that of later turns, [B, T]."""
        if not self.turn_level_advantages or rollouts.turn_tokens is None or rollouts.turn_rewards is None:
            return self.advantages(reward_PG, penalty_BT, mask_BT)
        # The same number of turns on every rank: advantages may use statistics of the whole batch.
        turns, found_BT = self.components.environment.max_turns, torch.zeros_like(penalty_BT)
        for gain_B, own, later in turns_of(rollouts, reward_PG.flatten(), mask_BT, turns):
            turn_BT = self.advantages(gain_B.view_as(reward_PG), penalty_BT * later, own)
            found_BT = turn_BT.where(own, found_BT)  # not a sum: NaN for episodes without the turn
        return found_BT

    def reference_logps_and_kl(self, rows: Rows, logps_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Log-probabilities under the reference, [B, T]; logs KL estimates (kl/exact with kl_estimator=exact)."""
        if self.kl_estimator != "exact":
            ref_logps_BT = self.reference_logps(rows)
            self.accumulate(sampled_kl_metrics(logps_BT, ref_logps_BT, mask_BT))
            return ref_logps_BT
        found = in_micro_batches(
            lambda part: score_with_reference(
                self.policy, self.reference_policy, part, temperature=self.sampling.temperature
            ),
            rows,
            self.tokens_per_micro_batch,
        )
        self.accumulate(kl_metrics(found))
        return found.ref_logps_BT

    def log_groups(self, reward_PG: Tensor, shaped_PG: Tensor, logps_BT: Tensor, mask_BT: Tensor) -> None:
        """Logs the spread of rewards, the groups without variance after penalties, and the entropy."""
        groups = len(reward_PG)
        self.accumulate(
            {
                "group/frac_reward_zero_std": Mean((~has_variance(shaped_PG)).sum(), groups),
                "group/reward_std": Mean(group_std(reward_PG).sum(), groups),
                "entropy": Mean(-logps_BT.sum(), mask_BT.sum()),
            }
        )

    def sample_groups(self, batch: Prompts) -> tuple[Rollouts, list[int]]:
        """Samples groups of completions; returns them and the global indices of the batch_size selected prompts.

        Samples batch_size prompts at a time over all ranks, until batch_size groups have variance or no prompts are
        left. Zero-variance groups fill the rest of the batch.
        """
        found: list[Rollouts] = []
        with_gradient: list[int] = []
        for first in range(0, self.items_per_update(), self.batch_size):
            local = local_indices(range(first, first + self.batch_size))
            indices = global_indices(local)
            sampled = self.rollout(batch.select(local), indices=indices, num_generations=self.group_size)
            found.append(sampled)
            differs = self.has_gradient(self.shaped_rewards(sampled).view(-1, self.group_size)).tolist()
            kept = [p for p, good in zip(indices, differs, strict=True) if good]
            with_gradient += chain.from_iterable(collectives.gather(kept))
            if len(with_gradient) >= self.batch_size:
                break
        self.start_next_rollout(self.group_size)
        if self.curriculum.active:
            self.count_passes(concatenated(found))
        with_gradient = sorted(with_gradient)[: self.batch_size]
        count = len(found) * self.batch_size
        others = sorted(set(range(count)).difference(with_gradient))[: self.batch_size - len(with_gradient)]
        self.accumulate({"group/prompts_sampled": Mean(count, 1), "group/with_gradient": Mean(len(with_gradient), 1)})
        return concatenated(found), sorted(with_gradient + others)

    def has_gradient(self, reward_PG: Tensor) -> Tensor:
        """True for groups that dynamic sampling keeps: those whose rewards differ, [P]."""
        return has_variance(reward_PG)

    def is_selected(self, completions: int) -> Tensor:
        """True for this rank's completions of selected prompts, [B]."""
        local = set(local_indices(self.selected))
        selected = [group in local for group in range(completions // self.group_size)]
        return torch.tensor(selected, device=self.device).repeat_interleave(self.group_size)

    def minibatches(self, prepared: GroupExperience) -> Iterator[GroupExperience]:
        """Mini-batches of whole groups, so that a shared prompt is computed once."""
        for indices in self.minibatch_indices(self.batch_size):
            groups = local_indices([self.selected[index] for index in indices])
            minibatch = prepared.select([g * self.group_size + i for g in groups for i in range(self.group_size)])
            self.accumulate({"policy_loss": Mean(0.0, self.denominator(minibatch))})
            yield minibatch
            self.first_pass = False
        self.adapt_entropy()

    def loss_sum(self, batch: GroupExperience) -> LossSum:
        found = self.scored(batch.rows)
        batch, mask_BT = batch.narrowed(found.mask_BT.shape[1]), found.mask_BT
        self.check_first_pass(batch.logps_BT, found.logps_BT)
        terms = self.surrogate(weighted_logps(found.logps_BT, batch.importance_weights_BT), batch, mask_BT)
        loss_BT = terms.loss_BT
        metrics = step_metrics(found.logps_BT - batch.logps_BT, terms, mask_BT)
        self.record_step(terms.ratio, batch.advantages_BT, mask_BT)
        # `minibatches` adds the count: completions without a gradient are not in this micro-batch.
        metrics["policy_loss"] = Mean(weighted_sum(loss_BT.detach(), mask_BT, batch.weight_B), 0)
        if self.kl_in_this_loss():
            loss_BT = loss_BT + self.coef * self.kl_penalty(found, batch)
        assert found.entropy_BT is not None
        metrics["entropy/exact"] = Mean(found.entropy_BT.detach().sum(), mask_BT.sum())
        if self.entropy_weight:
            loss_BT = loss_BT - self.entropy_weight * found.entropy_BT
        return LossSum(weighted_sum(loss_BT, mask_BT, batch.weight_B), metrics)

    def denominator(self, batch: GroupExperience) -> int:
        return len(batch)
