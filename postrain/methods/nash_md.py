"""Nash learning from human feedback by mirror descent (Munos et al. 2023, Nash-MD-PG): the policy plays against a
geometric mixture of itself and the reference policy. Its reward is the probability that its completion is preferred.

The fixed point is the Nash equilibrium of the preference, regularised by the KL to the reference. The preference may be
intransitive. `losses.nash_md` is the loss, `losses.nash_md_advantages` computes the advantages.

Axes: P prompts, G completions of a prompt, B = P·G completions, prompt-major, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from postrain import losses
from postrain.data.kinds.prompt import Prompts
from postrain.methods.learning_rates import LearningRates
from postrain.methods.metrics import sampled_kl_metrics
from postrain.methods.online import completion_mask, local_indices
from postrain.methods.online_preference import OnlinePreference
from postrain.methods.rollout_correction import RolloutCorrection
from postrain.models.scoring import score
from postrain.rollout.engine import Mixture
from postrain.types import Batch, Fraction, LossSum, Mean, Positive, Rows


@dataclass(frozen=True)
class Experience(Batch):
    """Completions with all constants of the loss, [B, T] over completion tokens."""

    rows: Rows
    logps_BT: Tensor
    """Old log-probabilities, under the sampling policy."""
    advantages_BT: Tensor
    in_loss_B: Tensor
    """False for truncated completions with mask_truncated_completions: they skip the forward pass."""
    importance_weights_BT: Tensor | None = None
    """π_old/π_sampler, truncated or masked; None if the engine samples from the policy."""

    def cost(self) -> list[int]:
        return [cost * in_loss for cost, in_loss in zip(self.rows.cost(), self.in_loss_B.tolist(), strict=True)]


class NashMD(OnlinePreference, RolloutCorrection):
    """Trains a policy on pairwise preferences towards their Nash equilibrium, by playing against a geometric mixture of
    policy and reference (Munos et al. 2023, Nash-MD-PG).

        maximise P(policy's completion beats the mixture's) − β · KL(policy ‖ reference)
    """

    headline: ClassVar[tuple[str, str, str]] = ("win_rate/mixture", "kl/k3", "eval/win_rate")
    rates: ClassVar[LearningRates] = LearningRates(base=5e-7, nano=3e-4)

    beta: Positive = 0.02
    mixture_coef: Fraction = 0.25
    """Share of the reference policy in the opponent: 0 is self-play, 1 plays against the reference."""

    def logs_kl(self) -> bool:
        return True

    def prepare(self, batch: Prompts) -> Experience:
        """Samples from policy and mixture; compares each completion with all of the mixture's for its prompt."""
        size = self.group_size
        policy = self.rollout(batch, num_generations=size)
        mixture = Mixture(self.policy, self.reference_policy, self.mixture_coef)
        opponent = self.rollout(batch, num_generations=size, purpose="opponent", model=mixture)
        self.start_next_rollout(size)
        preferred_B = self.preferences(policy, opponent).nanmean(2).flatten()
        mask_BT = completion_mask(policy.rows, self.device)
        logps_BT = self.old_logps(policy)
        ref_logps_BT = self.reference_logps(policy.rows)
        known_B = ~preferred_B.isnan()
        self.accumulate({**self.rollout_metrics(policy), **sampled_kl_metrics(logps_BT, ref_logps_BT, mask_BT)})
        self.accumulate({"win_rate/mixture": Mean(preferred_B[known_B].sum(), known_B.sum())})
        in_loss_B = ~self.truncated_and_masked(policy)
        advantages_BT = losses.nash_md_advantages(preferred_B, logps_BT - ref_logps_BT, mask_BT, beta=self.beta)
        weights_BT = self.importance_weights(policy, logps_BT)
        return Experience(policy.rows, logps_BT, advantages_BT * in_loss_B[:, None], in_loss_B, weights_BT)

    def minibatches(self, prepared: Experience) -> Iterator[Experience]:
        for indices in self.minibatch_indices(self.batch_size):
            prompts = local_indices(indices)
            yield prepared.select([p * self.group_size + i for p in prompts for i in range(self.group_size)])
            self.first_pass = False

    def loss_sum(self, batch: Experience) -> LossSum:
        found = score(self.policy, batch.rows, temperature=self.sampling.temperature)
        batch = batch.narrowed(found.mask_BT.shape[1])
        self.check_first_pass(batch.logps_BT, found.logps_BT)
        total = losses.nash_md(
            found.logps_BT,
            batch.logps_BT,
            batch.advantages_BT,
            found.mask_BT,
            importance_weights=batch.importance_weights_BT,
            reduction="sum",
        )
        return LossSum(total, {})

    def denominator(self, batch: Experience) -> int:
        return len(batch)
