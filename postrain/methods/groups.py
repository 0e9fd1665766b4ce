"""What methods share that compare the completions of a prompt with each other: groups instead of a critic.

A group whose completions all earn the same has no gradient; `resample` draws groups of further prompts in its place
(dynamic sampling; Yu et al. 2025, DAPO, eq. 11). The step is divided by the whole batch whatever was found: where all
draws together hold fewer groups with a gradient than `batch_size`, groups without one fill it, as they do with
`resample` = 0, and `group/useful` logs how many have one. (DAPO's own code stops the run there.)

Completions with nothing to learn from do not go through the model again. Axes: P prompts, G completions of a prompt,
B = P·G completions, prompt-major, T completion tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

import torch
from torch import Tensor

from postrain.data.kinds.prompt import Prompts
from postrain.hardware import collectives
from postrain.methods.kl_penalty import KLPenalised
from postrain.methods.online import joined, mask_of, own_share
from postrain.models.scoring import compare, in_micro_batches, kl_metrics
from postrain.ops import clipped_surrogate, kl_estimate, kl_estimates, step_metrics, surrogate_clips
from postrain.rollout.collect import Rollouts
from postrain.types import Batch, ConfigError, CountOrZero, LossSum, Mean, Positive, Rows, Size


def differing(reward_PG: Tensor) -> Tensor:
    """True for groups in which not all that could be scored earned the same, [P]; one alone differs from the batch."""
    known_PG = ~reward_PG.isnan()
    if reward_PG.shape[1] == 1:
        return known_PG[:, 0]
    highest_P = reward_PG.masked_fill(~known_PG, -torch.inf).amax(1)
    return highest_P - reward_PG.masked_fill(~known_PG, torch.inf).amin(1) > 1e-6


def centred(reward_PG: Tensor) -> Tensor:
    """Each reward less the mean of its group, [P, G]; NaN (unscorable) leaves the mean and becomes 0."""
    # In float64, where the mean of large rewards keeps their differences; and rounding must not tell equal ones apart.
    rewards_PG = reward_PG.double()
    centred_PG = (rewards_PG - rewards_PG.nanmean(1, keepdim=True)).nan_to_num(0.0)
    return (centred_PG * differing(reward_PG)[:, None]).to(reward_PG)


def group_std(reward_PG: Tensor) -> Tensor:
    """Bessel-corrected standard deviation of what could be scored (not NaN) in each group, [P, 1]; 0 of one reward."""
    count_P1 = (~reward_PG.isnan()).sum(1, keepdim=True)
    return ((centred(reward_PG) ** 2).sum(1, keepdim=True) / (count_P1 - 1).clamp(min=1)).sqrt()


@dataclass(frozen=True)
class Rollout(Batch):
    """Completions with everything the loss needs, all constants, [B, T] over completion tokens."""

    rows: Rows
    logps_BT: Tensor
    """Under the policy that sampled."""
    ref_logps_BT: Tensor
    """Under the reference; zeros where no KL is asked for."""
    advantages_BT: Tensor
    weight_B: Tensor
    """What each token's loss is multiplied with before everything is summed."""
    learned_B: Tensor
    """False where the loss has no gradient: such a completion needs no pass."""

    def cost(self) -> list[int]:
        learned = self.learned_B.tolist()
        kin = Counter(row for row, goes in zip(self.rows.row_ids, learned, strict=True) if goes)
        rows = zip(self.rows.ids, self.rows.supervised, self.rows.row_ids, learned, strict=True)
        # The prompt is shared with the completions that go through the model; answers of an environment are not.
        return [
            len(ids) - int(mask.long().argmax()) * (kin[row] - 1) // kin[row] if goes else 0
            for ids, mask, row, goes in rows
        ]


class Grouped(KLPenalised):
    """Policy gradient with advantages from groups of completions. A subclass says what they and the surrogate are."""

    headline: ClassVar[tuple[str, str, str]] = ("reward/total", "completion/length", "eval/reward/total")
    learns: ClassVar[tuple[str, float]] = ("gold/correct", 0.1)

    group_size: Size
    """Completions of each prompt; method.batch_size counts prompts."""
    clip_low: Positive
    clip_high: Positive
    """How far below and above 1 the ratio to the policy that sampled may go before it stops counting."""
    resample: CountOrZero
    """Further batches of prompts that may be drawn at an update to replace groups that all earned the same."""

    smallest_group: ClassVar[int] = 2

    def needs_reference(self) -> bool:
        return self.kl_coef > 0

    def check(self) -> None:
        super().check()
        if self.group_size < self.smallest_group:
            raise ConfigError(
                f"method.group_size={self.group_size}: completions are compared with others of the same prompt; "
                f"give at least {self.smallest_group}"
            )

    def items_drawn(self) -> int:
        return self.batch_size * (1 + self.resample)

    # What a subclass says ----------------------------------------------------------------------------------------

    def advantages(self, reward_PG: Tensor, penalty_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """How much better each token was than expected, [B, T]; `penalty_BT` is the part of the KL penalty that is
        taken off the reward for each token."""
        raise TypeError(f"{type(self).__name__} does not say what its advantages are")

    def ratios(self, log_ratio_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """How much likelier something has become since it was sampled, [B, T], or [B, 1]; by default each token."""
        return log_ratio_BT.exp()

    def surrogate(self, ratio_BT: Tensor, logps_BT: Tensor, advantages_BT: Tensor) -> Tensor:
        """What is minimised at each token, [B, T]."""
        return clipped_surrogate(ratio_BT, advantages_BT, self.clip_low, self.clip_high)

    def clips(self, ratio_BT: Tensor, advantages_BT: Tensor) -> Tensor:
        """True where the clip changes the surrogate, [B, T]."""
        return surrogate_clips(ratio_BT, advantages_BT, self.clip_low, self.clip_high)

    def weights(self, lengths_B: Tensor, counted_B: Tensor) -> Tensor:
        """The weight of each completion's tokens, [B]; by default completions count alike, however long."""
        return counted_B / lengths_B

    # From prompts to mini-batches --------------------------------------------------------------------------------

    def prepare(self, batch: Prompts) -> Rollout:
        """Sample, score, compare within groups."""
        episodes, self.kept = self.sampled(batch)
        rows, mask_BT = episodes.rows, mask_of(episodes.rows, self.device)
        logps_BT = self.old_logps(episodes)
        ref_logps_BT = self.noted_reference(rows, logps_BT, mask_BT) if self.coef else torch.zeros_like(logps_BT)
        off_reward = self.coef if self.kl_in == "reward" else 0.0
        penalty_BT = off_reward * kl_estimate(logps_BT, ref_logps_BT, "k1") * mask_BT
        reward_PG = self.shaped(episodes).view(-1, self.group_size)
        counted_B = self.of_kept(len(episodes))
        # What is left out is in no statistic either, so that it does not matter how many groups were drawn.
        learned_PG = reward_PG.where(counted_B.view_as(reward_PG), torch.nan)
        advantages_BT = self.advantages(learned_PG, penalty_BT, mask_BT) * ~learned_PG.isnan().view(-1, 1)
        weight_B = self.weights(mask_BT.sum(1), counted_B & ~self.left_out(episodes))
        moves_B = (advantages_BT != 0).any(1) | self.kl_moves_loss() | (self.entropy_coef > 0)
        self.note(episodes.metrics())
        self.note_groups(reward_PG, logps_BT, advantages_BT, mask_BT)
        return Rollout(rows, logps_BT, ref_logps_BT, advantages_BT, weight_B, (weight_B != 0) & moves_B)

    def noted_reference(self, rows: Rows, logps_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Log-probabilities under the reference, [B, T]; logs the KL by every estimate that costs no further pass."""
        if self.kl_estimator != "exact":
            ref_logps_BT = self.reference_logps(rows)
            self.note(kl_estimates(logps_BT, ref_logps_BT, mask_BT))
            return ref_logps_BT
        found = in_micro_batches(
            lambda part: compare(self.policy, self.reference_policy, part, temperature=self.sampling.temperature),
            rows,
            self.micro_batch_tokens,
        )
        self.note(kl_metrics(found))
        return found.ref_logps_BT

    def note_groups(self, reward_PG: Tensor, logps_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor) -> None:
        """How much there is to learn from."""
        tokens, groups = mask_BT.sum(), len(reward_PG)
        self.note(
            {
                "group/all_equal": Mean((~differing(reward_PG)).sum(), groups),
                "group/reward_std": Mean(group_std(reward_PG).sum(), groups),
                "advantage/mean_abs": Mean((advantages_BT.abs() * mask_BT).sum(), tokens),
                "entropy": Mean(-logps_BT.sum(), tokens),
            }
        )

    def sampled(self, batch: Prompts) -> tuple[Rollouts, list[int]]:
        """Groups of completions, and the global places of the batch_size prompts that are learned from.

        In waves of batch_size prompts over all ranks, until that many groups differ or the prompts are used up; then
        groups that do not differ fill the batch.
        """
        world, rank = collectives.world_size(), collectives.rank()
        found: list[Rollouts] = []
        useful: list[int] = []
        for first in range(0, self.items_drawn(), self.batch_size):
            mine = [p for p in range(first, first + self.batch_size) if p % world == rank]
            wave = self.rollout(batch.select([p // world for p in mine]), places=mine, copies=self.group_size)
            found.append(wave)
            differs = differing(self.shaped(wave).view(-1, self.group_size)).tolist()
            useful += chain.from_iterable(
                collectives.gather([p for p, good in zip(mine, differs, strict=True) if good])
            )
            if len(useful) >= self.batch_size:
                break
        useful = sorted(useful)[: self.batch_size]
        drawn = len(found) * self.batch_size
        others = sorted(set(range(drawn)).difference(useful))[: self.batch_size - len(useful)]
        self.note({"group/prompts_drawn": Mean(drawn, 1), "group/useful": Mean(len(useful), 1)})
        return joined(found), sorted(useful + others)

    def of_kept(self, completions: int) -> Tensor:
        """True for this rank's completions of prompts that are learned from, [B]."""
        mine = set(own_share(self.kept))
        kept = [group in mine for group in range(completions // self.group_size)]
        return torch.tensor(kept, device=self.device).repeat_interleave(self.group_size)

    def minibatches(self, prepared: Rollout) -> Iterator[Rollout]:
        """Whole groups, so that a prompt is run once for all its completions."""
        for places in self.passes(self.batch_size):
            groups = own_share([self.kept[place] for place in places])
            minibatch = prepared.select([g * self.group_size + i for g in groups for i in range(self.group_size)])
            self.note({"policy_loss": Mean(0.0, self.denominator(minibatch))})
            yield minibatch
            self.first_pass = False

    def loss_sum(self, batch: Rollout) -> LossSum:
        found = self.scored(batch.rows)
        batch, mask_BT = batch.narrowed(found.mask_BT.shape[1]), found.mask_BT
        self.note_first_pass(batch.logps_BT, found.logps_BT)
        log_ratio_BT = found.logps_BT - batch.logps_BT
        ratio_BT = self.ratios(log_ratio_BT, mask_BT)
        loss_BT = self.surrogate(ratio_BT, found.logps_BT, batch.advantages_BT)
        clipped_BT = self.clips(ratio_BT.detach(), batch.advantages_BT)
        metrics = step_metrics(log_ratio_BT.detach(), ratio_BT.detach(), clipped_BT, mask_BT)
        self.watch(ratio_BT, batch.advantages_BT, mask_BT)
        # Counted by mini-batch, since completions without a gradient are not here.
        metrics["policy_loss"] = Mean((loss_BT.detach() * mask_BT * batch.weight_B[:, None]).sum(), 0)
        if self.kl_moves_loss():
            loss_BT = loss_BT + self.coef * self.kl_in_loss(found, batch.ref_logps_BT)
        if found.entropy_BT is not None:
            loss_BT = loss_BT - self.entropy_coef * found.entropy_BT
            metrics["entropy/exact"] = Mean(found.entropy_BT.detach().sum(), mask_BT.sum())
        return LossSum((loss_BT * mask_BT * batch.weight_B[:, None]).sum(), metrics)

    def denominator(self, batch: Rollout) -> int:
        return len(batch)
