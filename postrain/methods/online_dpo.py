"""Direct preference optimisation on the policy's own completions, labelled online (Guo et al. 2024, "Direct
language model alignment from online AI feedback").

The completion of a prompt with the highest mean preference over the others is chosen, the one with the lowest is
rejected; the paper samples two completions. Prompts with a tie carry no gradient. `losses.dpo` is the loss.

Axes: P prompts, G completions of a prompt, B pairs (one per prompt), T completion tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from postrain import losses
from postrain.data.kinds.preference import Pairs
from postrain.data.kinds.prompt import Prompts
from postrain.errors import ConfigError
from postrain.methods.learning_rates import LearningRates
from postrain.methods.metrics import TIE
from postrain.methods.online import local_indices
from postrain.methods.online_preference import OnlinePreference
from postrain.methods.pairs import PairScores, lengths, pair_metrics
from postrain.models.micro_batches import concatenated
from postrain.models.scoring import score
from postrain.rollout.collect import Rollouts
from postrain.types import Batch, LossSum, Mean, NonNegative


def average_preference(beats_PGG: Tensor) -> Tensor:
    """Mean P(completion beats another of its prompt), [P, G]; NaN if no comparison succeeded.

    `beats_PGG[p, i, j]` is P(i beats j); a completion is not compared with itself.
    """
    diagonal = torch.eye(beats_PGG.shape[1], dtype=torch.bool, device=beats_PGG.device)
    return beats_PGG.masked_fill(diagonal, torch.nan).nanmean(2)


@dataclass(frozen=True)
class OnlinePairs(Batch):
    """Pairs of completions with all constants of the loss."""

    pairs: Pairs
    ref_chosen_B: Tensor
    """Log-probability of the whole completion under the reference."""
    ref_rejected_B: Tensor
    decided_B: Tensor
    """False for ties: they have no DPO loss."""
    in_loss_B: Tensor
    """False for pairs without a gradient, which skip the forward pass: ties, or with xpo_alpha those whose completion
    of the reference is truncated and masked."""
    second_chosen_B: Tensor
    """True where the chosen completion is the second of its prompt: with xpo_alpha, the reference's."""

    def cost(self) -> list[int]:
        return [cost * in_loss for cost, in_loss in zip(self.pairs.cost(), self.in_loss_B.tolist(), strict=True)]


class OnlineDPO(OnlinePreference):
    """Trains a policy with the DPO loss on pairs of its own completions, labelled by a reward or a preference (Guo et
    al. 2024, OAIF).

        loss = −log σ(β (log π/π_ref (chosen) − log π/π_ref (rejected)))      a mean over prompts

    With xpo_alpha, the pairs are those of XPO (Xie et al. 2024, arXiv 2405.21046, algorithm 1), whose loss also has
    α · log π(completion of the reference): the policy moves away from what the reference would write.
    """

    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """Loss of a pair: sigmoid (DPO) or ipo (IPO)."""
    xpo_alpha: NonNegative = 0.0
    """Weight of log π of the reference's completion in the loss (XPO, exploratory preference optimisation). Above 0,
    the two completions of a pair are sampled from the policy and from the reference. 0 disables it."""

    headline: ClassVar[tuple[str, str, str]] = ("accuracy", "completion/length", "eval/win_rate")
    rates: ClassVar[LearningRates] = LearningRates(base=5e-7, nano=1.5e-4)

    def check(self) -> None:
        super().check()
        if self.group_size < 2:
            raise ConfigError(f"method.group_size={self.group_size}: a pair needs two completions; give at least 2")
        if self.xpo_alpha and self.group_size > 2:
            raise ConfigError(
                f"method.group_size={self.group_size}: method.xpo_alpha compares one completion of the policy with one "
                "of the reference; give 2"
            )

    def prepare(self, batch: Prompts) -> OnlinePairs:
        """Samples, compares, and pairs the best with the worst completion of each prompt."""
        rollouts = self.xpo_rollout(batch) if self.xpo_alpha else self.rollout(batch, num_generations=self.group_size)
        self.start_next_rollout(1 if self.xpo_alpha else self.group_size)
        average_PG = average_preference(self.preferences(rollouts, rollouts))
        best_P, worst_P = average_PG.nan_to_num(-1.0).argmax(1), average_PG.nan_to_num(2.0).argmin(1)
        if self.xpo_alpha:
            # Also of a tie, whose best and worst completion would be the first.
            worst_P = 1 - best_P
        first_P = torch.arange(len(batch), device=self.device) * self.group_size
        chosen, rejected = ((first_P + which_P).tolist() for which_P in (best_P, worst_P))
        rows, ref_B = rollouts.rows, self.reference_logps(rollouts.rows).sum(1)
        gap_P = average_PG.gather(1, best_P[:, None]) - average_PG.gather(1, worst_P[:, None])
        decided_P = gap_P.squeeze(1).nan_to_num(0.0) > TIE
        # With xpo_alpha every other completion is the reference's.
        own = rollouts.select(range(0, len(rollouts), 2)) if self.xpo_alpha else rollouts
        self.accumulate({**self.rollout_metrics(own), "tie_rate": Mean((~decided_P).sum(), len(batch))})
        pairs = Pairs(rows.select(chosen), rows.select(rejected), torch.zeros(len(batch), device=self.device))
        # The term of XPO does not depend on the comparison, only on the reference's completion.
        in_loss_P = ~self.truncated_and_masked(rollouts)[1::2] if self.xpo_alpha else decided_P
        return OnlinePairs(pairs, ref_B[chosen], ref_B[rejected], decided_P, in_loss_P, best_P == 1)

    def xpo_rollout(self, batch: Prompts) -> Rollouts:
        """A completion of the policy and one of the reference for each prompt, prompt-major."""
        policy = self.rollout(batch)
        with self.reference_policy.scoring() as frozen:
            reference = self.rollout(batch, purpose="reference", model=frozen)
        both = concatenated([policy, reference])
        return both.select([side * len(batch) + prompt for prompt in range(len(batch)) for side in range(2)])

    def minibatches(self, prepared: OnlinePairs) -> Iterator[OnlinePairs]:
        for indices in self.minibatch_indices(self.batch_size):
            yield prepared.select(local_indices(indices))

    def loss_sum(self, batch: OnlinePairs) -> LossSum:
        both = batch.pairs.chosen + batch.pairs.rejected
        found = PairScores.from_concatenated(score(self.policy, both, temperature=self.sampling.temperature))
        chosen_B, rejected_B = found.chosen.logps_BT.sum(1), found.rejected.logps_BT.sum(1)
        loss_B = losses.dpo(
            chosen_B,
            rejected_B,
            batch.ref_chosen_B,
            batch.ref_rejected_B,
            self.beta,
            loss_type=self.loss,
            chosen_lengths=lengths(found.chosen),
            rejected_lengths=lengths(found.rejected),
            reduction="none",
        )
        total = (loss_B * batch.decided_B).sum()
        if self.xpo_alpha:
            of_reference_B = torch.where(batch.second_chosen_B, chosen_B, rejected_B)
            total = total + self.xpo_alpha * (of_reference_B * batch.in_loss_B).sum()
        log_ratios = chosen_B - batch.ref_chosen_B, rejected_B - batch.ref_rejected_B
        chosen_B, rejected_B = (self.beta * log_ratio_B[batch.decided_B] for log_ratio_B in log_ratios)
        return LossSum(total, pair_metrics(chosen_B, rejected_B, found.select(batch.decided_B)))

    def denominator(self, batch: OnlinePairs) -> int:
        return len(batch)
