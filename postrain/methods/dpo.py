"""Direct preference optimisation and its family: the policy's log-ratio to a reference is the reward, and pairs are
told apart by it (Rafailov et al. 2023). `method.loss` chooses among the losses of preference_losses.py, or weighs
several (MPO, Wang et al. 2024).

Axes: B pairs, T completion tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import torch
from annotated_types import Gt, Lt
from torch import Tensor

from postrain.data.kinds.preference import Pairs
from postrain.hardware import collectives
from postrain.losses.preference import (
    LOSSES,
    RANKED,
    Divergence,
    LossName,
    Smoothing,
    Terms,
    check_losses,
    desensitised,
    f_prime,
    of_equal_rank,
)
from postrain.methods.known_logps import in_order
from postrain.methods.metrics import combine
from postrain.methods.pairs import PairMethod, PairScores, lengths, mean_logps, pair_metrics, score_pairs
from postrain.methods.referenced import Referenced
from postrain.ops import RunningMean
from postrain.types import Batch, Fraction, LossSum, Max, Mean, NonNegative, Positive

Share = Annotated[float, Gt(0), Lt(1)]


@dataclass(frozen=True)
class ReferencedPairs(Batch):
    """Pairs with all that is constant while the policy learns from them."""

    pairs: Pairs
    ref_chosen: tuple[Tensor, ...]
    """Log-probabilities under the reference, [T] each."""
    ref_rejected: tuple[Tensor, ...]
    ref_margin_of_rank_B: Tensor
    """Partners in the global batch, see Terms; 0 where no loss asks for them."""
    chosen_of_rank_B: Tensor
    rejected_of_rank_B: Tensor

    def reference(self) -> PairScores:
        """The reference's scores, laid out as the policy's."""
        return PairScores.of(self.ref_chosen, self.ref_rejected, self.ref_margin_of_rank_B.device)


def weights_of(loss: LossName | Mapping[LossName, float]) -> Mapping[LossName, float]:
    """Each loss with its weight."""
    return {loss: 1.0} if isinstance(loss, str) else loss


class DPO(Referenced, PairMethod):
    """Minimises, over pairs, −log σ(β (log π/π_ref (chosen) − log π/π_ref (rejected))) or a relative of it."""

    loss: LossName | Mapping[LossName, Positive]
    """One loss, or several with their weights: {sigmoid: 0.8, bco: 0.2}."""
    beta: Positive
    """Strength of the leash to the reference; IPO's τ."""
    label_smoothing: Smoothing
    """Share of labels taken to be wrong."""
    divergence: Divergence
    """Which f-divergence to the reference the reward stands for."""
    divergence_alpha: Share
    """α of the α-divergence."""
    length_weight: Fraction
    """Weight of a completion's tokens beyond the other's length (LD-DPO); 1 weighs all alike."""
    nll_coef: NonNegative
    """Weight of the chosen completion's −log π per token (RPO, Pang et al. 2024)."""
    discopop_tau: Positive
    bco_momentum: Fraction
    """How much of BCO's running mean reward stays at each update. Without bias: the first update's mean counts fully,
    and is not averaged with a 0 that nobody measured."""

    def attached(self) -> None:
        super().attached()
        self.weights = weights_of(self.loss)
        self.shift = RunningMean()
        check_losses(self.weights, smoothing=self.label_smoothing, divergence=self.divergence)

    def prepare(self, batch: Pairs) -> ReferencedPairs:
        known = self.reference_of(batch)
        nobody_B = torch.zeros_like(batch.margin_B)
        prepared = ReferencedPairs(
            batch, in_order(known, batch.chosen), in_order(known, batch.rejected), nobody_B, nobody_B, nobody_B
        )
        return self.ranked(prepared) if RANKED.intersection(self.weights) else prepared

    def ranked(self, prepared: ReferencedPairs) -> ReferencedPairs:
        """Finds each pair's partners in the global batch, by what the policy says before this update."""
        known = self.logps_by_row(self.policy, prepared.pairs)
        pairs = prepared.pairs
        policy = PairScores.of(in_order(known, pairs.chosen), in_order(known, pairs.rejected), pairs.margin_B.device)
        found = self.terms(policy, prepared)
        ref_chosen_B, ref_rejected_B = self.sums(prepared.reference())
        mine = [found.chosen_B, found.rejected_B, found.margin_B, ref_chosen_B - ref_rejected_B]
        parts = collectives.gather([tensor_B.cpu() for tensor_B in mine])
        before = sum(len(part[0]) for part in parts[: collectives.rank()])
        chosen_G, rejected_G, margin_G, ref_margin_G = (torch.cat(tensors) for tensors in zip(*parts, strict=True))

        def partners(values_G: Tensor, others_G: Tensor) -> Tensor:
            return of_equal_rank(values_G, others_G)[before : before + len(prepared)].to(found.chosen_B)

        return replace(
            prepared,
            ref_margin_of_rank_B=partners(margin_G, ref_margin_G),
            chosen_of_rank_B=partners(rejected_G, chosen_G),
            rejected_of_rank_B=partners(chosen_G, rejected_G),
        )

    def sums(self, scores: PairScores) -> tuple[Tensor, Tensor]:
        """Each side's log-probability, [B]."""
        chosen, rejected = scores.chosen, scores.rejected
        return (
            desensitised(chosen.logps_BT, chosen.mask_BT, lengths(rejected), self.length_weight),
            desensitised(rejected.logps_BT, rejected.mask_BT, lengths(chosen), self.length_weight),
        )

    def terms(self, policy: PairScores, batch: ReferencedPairs) -> Terms:
        """What the losses look at."""
        chosen_B, rejected_B = self.sums(policy)
        ref_chosen_B, ref_rejected_B = self.sums(batch.reference())
        gained_B, lost_B = chosen_B - ref_chosen_B, rejected_B - ref_rejected_B
        return Terms(
            chosen_B=f_prime(gained_B, self.divergence, self.divergence_alpha),
            rejected_B=f_prime(lost_B, self.divergence, self.divergence_alpha),
            chosen_mean_B=gained_B / lengths(policy.chosen),
            rejected_mean_B=lost_B / lengths(policy.rejected),
            margin_B=chosen_B - rejected_B,
            ref_margin_of_rank_B=batch.ref_margin_of_rank_B,
            chosen_of_rank_B=batch.chosen_of_rank_B,
            rejected_of_rank_B=batch.rejected_of_rank_B,
            beta=self.beta,
            smoothing=self.label_smoothing,
            tau=self.discopop_tau,
            shift=self.shift.value,
        )

    def loss_sum(self, batch: ReferencedPairs) -> LossSum:
        policy, reference = score_pairs(self.policy, batch.pairs), batch.reference()
        terms = self.terms(policy, batch)
        losses: dict[LossName, Tensor] = {name: LOSSES[name](terms).sum() for name in self.weights}
        metrics = pair_metrics(self.beta * terms.chosen_B, self.beta * terms.rejected_B, policy)
        if len(losses) > 1:
            metrics |= {f"loss/{name}": Mean(value.detach(), len(batch)) for name, value in losses.items()}
        total = sum((self.weights[name] * value for name, value in losses.items()), start=torch.zeros(()))
        if self.nll_coef:
            nll_B = -mean_logps(policy.chosen)
            total = total + self.nll_coef * nll_B.sum()
            metrics["nll/chosen"] = Mean(nll_B.detach().sum(), len(batch))
        return LossSum(total, metrics | self.moved(policy, reference))

    def moved(self, policy: PairScores, reference: PairScores) -> dict[str, Mean | Max]:
        """How far both sides have come from the reference; nothing without one."""
        if self.reference_logps == "none":
            return {}
        chosen_BT = (policy.chosen.logps_BT - reference.chosen.logps_BT).detach()
        rejected_BT = (policy.rejected.logps_BT - reference.rejected.logps_BT).detach()
        furthest = torch.maximum(chosen_BT.abs().max(), rejected_BT.abs().max())
        self.check_start(furthest)
        return {
            "logp_change/chosen": Mean(chosen_BT.sum(), len(chosen_BT)),
            "logp_change/rejected": Mean(rejected_BT.sum(), len(rejected_BT)),
            "log_ratio_max": Max(furthest),
        }

    def minibatches(self, prepared: Batch) -> Iterator[Batch]:
        yield from super().minibatches(prepared)
        if "bco" in self.weights:
            rewards = combine({name: self.noted[name] for name in ("reward/chosen", "reward/rejected")})
            self.shift = self.shift.after(sum(rewards.values()) / 2, self.bco_momentum)

    def state(self) -> dict[str, Any]:
        return super().state() | {"shift": asdict(self.shift)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        super().load_state(state)
        self.shift = RunningMean(**state["shift"])
