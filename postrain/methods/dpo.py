"""Direct preference optimisation and its family: β times the log-ratio to a reference is the implicit reward of a
completion, trained to be larger for the chosen one of a pair (Rafailov et al. 2023).

    loss = −log σ(β (log π/π_ref (chosen) − log π/π_ref (rejected)))      a mean over pairs

`losses.dpo` is this loss, composed of the same terms. `method.loss` selects a loss of losses/dpo_variants.py, or a
weighted sum of several (MPO, Wang et al. 2024).

Axes: B pairs, T completion tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from postrain.data.kinds.preference import Pairs
from postrain.errors import ConfigError
from postrain.hardware import collectives
from postrain.losses.dpo_variants import (
    LOSSES,
    RANKED,
    SMOOTHED,
    WITHOUT_DIVERGENCE,
    Divergence,
    LossName,
    PairTerms,
    length_desensitised,
    wpo_weights,
)
from postrain.losses.preference import pair_terms, rank_partners
from postrain.methods.learning_rates import LearningRates
from postrain.methods.metrics import combine
from postrain.methods.pairs import PairMethod, PairScores, Smoothing, lengths, mean_logps, pair_metrics, score_pairs
from postrain.methods.reference_cache import lookup
from postrain.methods.reference_model import ReferenceModelMixin
from postrain.models.scoring import log_sum_squares
from postrain.types import Batch, Fraction, LossSum, Max, Mean, NonNegative, OpenFraction, Positive, Size


@dataclass(frozen=True)
class RunningMean:
    """Exponential moving average with bias correction, total / weight (Kingma and Ba 2015, Adam, section 3)."""

    total: float = 0.0
    weight: float = 0.0
    """1 − momentum^n after n values."""

    @property
    def value(self) -> float:
        """The mean; 0 before the first value."""
        return self.total / self.weight if self.weight else 0.0

    def after(self, value: float, momentum: float) -> RunningMean:
        """The average after one more value."""
        share = 1 - momentum
        return RunningMean(momentum * self.total + share * value, momentum * self.weight + share)


@dataclass(frozen=True)
class PairsWithReference(Batch):
    """Pairs with all constants of the loss."""

    pairs: Pairs
    ref_chosen: tuple[Tensor, ...]
    """Log-probabilities under the reference, [T] each."""
    ref_rejected: tuple[Tensor, ...]
    ref_margin_of_rank_B: Tensor
    """Constants of equal rank in the global batch, see PairTerms; 0 if no loss uses them."""
    chosen_of_rank_B: Tensor
    rejected_of_rank_B: Tensor

    def reference(self) -> PairScores:
        """The reference's scores, laid out as the policy's."""
        return PairScores.from_logps(self.ref_chosen, self.ref_rejected, self.ref_margin_of_rank_B.device)


def check_losses(
    weights: Mapping[LossName, float], *, smoothing: float, divergence: Divergence, weighted: bool = False
) -> None:
    """Raises ConfigError for settings that a loss ignores or cannot use."""
    names = "+".join(weights)
    if not weights:
        raise ConfigError(f"method.loss: expected at least one loss; give one of {', '.join(LOSSES)}")
    if smoothing and not SMOOTHED.intersection(weights):
        raise ConfigError(
            f"method.label_smoothing={smoothing} has no effect on method.loss={names}; leave it 0 or use one of "
            f"{', '.join(sorted(SMOOTHED))}"
        )
    if weighted and RANKED.intersection(weights):
        raise ConfigError(f"method.use_weighting: method.loss={names} compares values of different pairs; remove one")
    if "exo" in weights and not smoothing:
        raise ConfigError("method.label_smoothing=0: exo takes its logarithm; give it 0.001")
    if divergence != "reverse_kl" and WITHOUT_DIVERGENCE.intersection(weights):
        raise ConfigError(f"method.divergence={divergence} has no effect on method.loss={names}; leave it reverse_kl")


def weights_of(loss: LossName | Mapping[LossName, float]) -> Mapping[LossName, float]:
    """Each loss with its weight."""
    return {loss: 1.0} if isinstance(loss, str) else loss


class DPO(ReferenceModelMixin, PairMethod):
    """Trains a policy directly on preference pairs, without a reward model or sampling (Rafailov et al. 2023).

        loss = −log σ(β (log π/π_ref (chosen) − log π/π_ref (rejected)))      a mean over pairs

    `loss` selects another loss of the family: IPO, robust DPO, hinge, SPPO, NCA, EXO, APO, DiscoPOP, BCO or AOT.
    """

    rates: ClassVar[LearningRates] = LearningRates(base=1e-6, nano=1e-4)
    batch_size: Size = 32
    loss: LossName | Mapping[LossName, Positive] = "sigmoid"
    """A loss, or several with weights as in {sigmoid: 0.8, bco: 0.2}."""
    beta: Positive = 0.1
    """KL coefficient β: larger values keep the policy closer to the reference. With loss=ipo it is τ: the target gap is
    1/(2τ) nats/token."""
    label_smoothing: Smoothing = 0.0
    """ε, the assumed share of wrong labels, below 0.5."""
    divergence: Divergence = "reverse_kl"
    """The f-divergence to the reference that regularises the policy (f-DPO): reverse_kl, forward_kl, js or alpha."""
    divergence_alpha: OpenFraction = 0.5
    """α of the α-divergence."""
    ld_alpha: Fraction = 1.0
    """Weight of a completion's tokens beyond the other's length (LD-DPO); 1 weighs all tokens alike."""
    sft_coef: NonNegative = 0.0
    """Weight of the chosen completion's −log π per token (RPO, Pang et al. 2024)."""
    use_weighting: bool = False
    """Multiply the loss of a pair by how likely the policy is to sample its completions (WPO, for off-policy pairs).
    Costs a forward pass."""
    discopop_tau: Positive = 0.05
    """Temperature of DiscoPOP's blend of the logistic and the exponential loss."""
    bco_momentum: Fraction = 0.9
    """Momentum of BCO's running mean reward, with bias correction."""

    def conditional_options(self) -> dict[str, str | None]:
        names = weights_of(self.loss)
        return {
            **super().conditional_options(),
            "divergence_alpha": None if self.divergence == "alpha" else "method.divergence=alpha",
            "discopop_tau": None if "discopop" in names else "method.loss=discopop",
            "bco_momentum": None if "bco" in names else "method.loss=bco",
        }

    def learning_rates(self) -> LearningRates:
        return replace(self.rates, nano=2e-4) if self.loss == "ipo" else self.rates

    def on_model_attached(self) -> None:
        super().on_model_attached()
        self.weights = weights_of(self.loss)
        self.shift = RunningMean()
        check_losses(
            self.weights,
            smoothing=self.label_smoothing,
            divergence=self.divergence,
            weighted=self.use_weighting,
        )

    def prepare(self, batch: Pairs) -> PairsWithReference:
        known = self.reference_logps_of(batch)
        zeros_B = torch.zeros_like(batch.margin_B)
        prepared = PairsWithReference(
            batch, lookup(known, batch.chosen), lookup(known, batch.rejected), zeros_B, zeros_B, zeros_B
        )
        return self.ranked(prepared) if RANKED.intersection(self.weights) else prepared

    def ranked(self, prepared: PairsWithReference) -> PairsWithReference:
        """Matches pairs of the global batch by rank under the policy before this update (AOT)."""
        known = self.logps_by_row(self.policy, prepared.pairs)
        pairs = prepared.pairs
        policy = PairScores.from_logps(
            lookup(known, pairs.chosen), lookup(known, pairs.rejected), pairs.margin_B.device
        )
        found = self.terms(policy, prepared)
        ref_chosen_B, ref_rejected_B = self.sums(prepared.reference())
        local = [found.chosen_B, found.rejected_B, found.margin_B, ref_chosen_B - ref_rejected_B]
        everywhere, own = collectives.concatenate(local)
        ref_margin_B, chosen_B, rejected_B = (
            values_G[own].to(found.chosen_B) for values_G in rank_partners(*everywhere)
        )
        return replace(
            prepared, ref_margin_of_rank_B=ref_margin_B, chosen_of_rank_B=chosen_B, rejected_of_rank_B=rejected_B
        )

    def sums(self, scores: PairScores) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the chosen and the rejected completions, [B] each, weighted by ld_alpha."""
        chosen, rejected = scores.chosen, scores.rejected
        return (
            length_desensitised(chosen.logps_BT, chosen.mask_BT, lengths(rejected), self.ld_alpha),
            length_desensitised(rejected.logps_BT, rejected.mask_BT, lengths(chosen), self.ld_alpha),
        )

    def terms(self, policy: PairScores, batch: PairsWithReference) -> PairTerms:
        """The inputs of the losses in LOSSES."""
        return pair_terms(
            *self.sums(policy),
            *self.sums(batch.reference()),
            beta=self.beta,
            smoothing=self.label_smoothing,
            divergence=self.divergence,
            alpha=self.divergence_alpha,
            chosen_lengths=lengths(policy.chosen),
            rejected_lengths=lengths(policy.rejected),
            partners=(batch.ref_margin_of_rank_B, batch.chosen_of_rank_B, batch.rejected_of_rank_B),
            tau=self.discopop_tau,
            shift=self.shift.value,
        )

    def loss_sum(self, batch: PairsWithReference) -> LossSum:
        policy, reference = score_pairs(self.policy, batch.pairs), batch.reference()
        terms = self.terms(policy, batch)
        losses: dict[LossName, Tensor] = {name: LOSSES[name](terms) for name in self.weights}
        if self.use_weighting:
            weight_B = self.weights_of_pairs(policy, batch.pairs)
            losses = {name: loss_B * weight_B for name, loss_B in losses.items()}
        metrics = pair_metrics(self.beta * terms.chosen_B, self.beta * terms.rejected_B, policy)
        if len(losses) > 1:
            metrics |= {f"loss/{name}": Mean(loss_B.detach().sum(), len(batch)) for name, loss_B in losses.items()}
        loss_B = sum((self.weights[name] * loss_B for name, loss_B in losses.items()), start=torch.zeros(()))
        if self.sft_coef:
            nll_B = -mean_logps(policy.chosen)
            loss_B = loss_B + self.sft_coef * nll_B
            metrics["nll/chosen"] = Mean(nll_B.detach().sum(), len(batch))
        return LossSum.of_rows(loss_B, metrics | self.log_ratio_metrics(policy, reference))

    def weights_of_pairs(self, policy: PairScores, pairs: Pairs) -> Tensor:
        """WPO's weight of each pair, [B]."""
        squares = log_sum_squares(self.policy, pairs.chosen + pairs.rejected).chunk(2)
        sides = zip((policy.chosen, policy.rejected), squares, strict=True)
        chosen_B, rejected_B = (wpo_weights(side.logps_BT, squares_BT, side.mask_BT) for side, squares_BT in sides)
        return chosen_B * rejected_B

    def log_ratio_metrics(self, policy: PairScores, reference: PairScores) -> dict[str, Mean | Max]:
        """Log-ratios of both completions to the reference; empty with reference_free."""
        if self.reference_free:
            return {}
        chosen_BT = (policy.chosen.logps_BT - reference.chosen.logps_BT).detach()
        rejected_BT = (policy.rejected.logps_BT - reference.rejected.logps_BT).detach()
        largest = torch.maximum(chosen_BT.abs().max(), rejected_BT.abs().max())
        self.check_initial_log_ratio(largest)
        return {
            "log_ratio/chosen": Mean(chosen_BT.sum(), len(chosen_BT)),
            "log_ratio/rejected": Mean(rejected_BT.sum(), len(rejected_BT)),
            "log_ratio_max": Max(largest),
        }

    def minibatches(self, prepared: Batch) -> Iterator[Batch]:
        yield from super().minibatches(prepared)
        if "bco" in self.weights:
            rewards = combine({name: self.accumulated[name] for name in ("reward/chosen", "reward/rejected")})
            self.shift = self.shift.after(sum(rewards.values()) / 2, self.bco_momentum)

    def state(self) -> dict[str, Any]:
        return super().state() | {"shift": asdict(self.shift)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        super().load_state(state)
        self.shift = RunningMean(**state["shift"])
