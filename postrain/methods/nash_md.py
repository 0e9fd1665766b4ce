"""Nash learning from human feedback by mirror descent (Munos et al. 2023, Nash-MD-PG): the policy plays against a
geometric mixture of itself and its start, and is paid by how likely its completion is preferred to the mixture's.

What it approaches is the Nash equilibrium of the preference, regularised by the KL to the start; no reward needs to
exist that explains the preference. Axes: P prompts, G completions of a prompt, B = P·G of them, prompt-major, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from postrain.data.kinds.prompt import Prompts
from postrain.methods.duels import Dueling
from postrain.methods.online import mask_of, own_share
from postrain.models.scoring import score
from postrain.ops import kl_estimates, to_come
from postrain.rollout.engine import Mixture
from postrain.types import Batch, Fraction, LossSum, Mean, Rows


def nash_advantages(beats_B: Tensor, log_ratio_BT: Tensor, mask_BT: Tensor, beta: float) -> Tensor:
    """P(y beats y') − ½ − β · Σ log π/π_start of this and all later tokens, [B, T] (Munos et al. 2023, section 7.2).

    The tokens before do not depend on this one, so leaving theirs out changes no mean. NaN (nobody can tell) pays 0.
    """
    won_B = (beats_B - 0.5).nan_to_num(0.0)
    return (won_B[:, None] - beta * to_come(log_ratio_BT * mask_BT)) * mask_BT


@dataclass(frozen=True)
class Played(Batch):
    """Completions with what they won, [B, T] over completion tokens."""

    rows: Rows
    logps_BT: Tensor
    """Under the policy that sampled."""
    advantages_BT: Tensor
    learned_B: Tensor
    """False for truncated completions where those are left out: they need no pass."""

    def cost(self) -> list[int]:
        return [cost * learned for cost, learned in zip(self.rows.cost(), self.learned_B.tolist(), strict=True)]


class NashMD(Dueling):
    """Maximises P(policy's completion beats the mixture's) − β · KL(policy ‖ start)."""

    headline: ClassVar[tuple[str, str, str]] = ("win/mixture", "kl/k3", "eval/win_rate")

    mixture: Fraction
    """The start's share in the opponent: 0 is self-play, 1 plays against the start."""

    def prepare(self, batch: Prompts) -> Played:
        """Play: each completion meets every one of the mixture's for its prompt."""
        size = self.group_size
        mine = self.rollout(batch, copies=size)
        opponent = Mixture(self.policy, self.reference_policy, self.mixture)
        theirs = self.rollout(batch, copies=size, purpose="opponent", model=opponent)
        won_B = self.match(mine, theirs).nanmean(2).flatten()
        mask_BT = mask_of(mine.rows, self.device)
        logps_BT = self.old_logps(mine)
        ref_logps_BT = self.reference_logps(mine.rows)
        known_B = ~won_B.isnan()
        self.note({**self.measured(mine), **kl_estimates(logps_BT, ref_logps_BT, mask_BT)})
        self.note({"win/mixture": Mean(won_B[known_B].sum(), known_B.sum())})
        learned_B = ~self.left_out(mine)
        advantages_BT = nash_advantages(won_B, logps_BT - ref_logps_BT, mask_BT, self.beta)
        return Played(mine.rows, logps_BT, advantages_BT * learned_B[:, None], learned_B)

    def minibatches(self, prepared: Played) -> Iterator[Played]:
        for places in self.passes(self.batch_size):
            prompts = own_share(places)
            yield prepared.select([p * self.group_size + i for p in prompts for i in range(self.group_size)])
            self.first_pass = False

    def loss_sum(self, batch: Played) -> LossSum:
        found = score(self.policy, batch.rows, temperature=self.sampling.temperature)
        batch = batch.narrowed(found.mask_BT.shape[1])
        self.note_first_pass(batch.logps_BT, found.logps_BT)
        # Its gradient at ratio 1 is that of A · log π; in later passes each token counts by how likely it has become.
        ratio_BT = (found.logps_BT - batch.logps_BT).exp()
        return LossSum(-(ratio_BT * batch.advantages_BT * found.mask_BT).sum(), {})

    def denominator(self, batch: Played) -> int:
        return len(batch)
