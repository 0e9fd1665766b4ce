"""The losses of the DPO family, pure functions of the log-ratios of pairs, and the table LOSSES of `loss_type`.

β > 0 is the coefficient of the implied KL penalty to the reference. A completion's log-ratio l is
Σ log π(token) − Σ log π_ref(token); the gap Δ of a pair is the chosen one's log-ratio minus the rejected one's. All
tensors are [B], a loss for each pair; `losses.dpo` reduces them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import log
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu, softplus

Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]

# Bounds exponents so that losses stay finite: the square of exp(40), as in SPPO, is still a float32.
LARGEST_EXPONENT = 40.0


def sigmoid(gap_B: Tensor, *, beta: float, smoothing: float = 0.0) -> Tensor:
    """−(1−ε) log σ(βΔ) − ε log σ(−βΔ) (Rafailov et al. 2023, eq. 7; conservative smoothing ε of Mitchell 2023)."""
    return -(1 - smoothing) * logsigmoid(beta * gap_B) - smoothing * logsigmoid(-beta * gap_B)


def robust(gap_B: Tensor, *, beta: float, smoothing: float) -> Tensor:
    """[−(1−ε) log σ(βΔ) + ε log σ(−βΔ)] / (1 − 2ε): unbiased where a share ε of labels is flipped (Chowdhury et al.
    2024, eq. 12)."""
    wrong_B = smoothing * logsigmoid(-beta * gap_B)
    return (-(1 - smoothing) * logsigmoid(beta * gap_B) + wrong_B) / (1 - 2 * smoothing)


def hinge(gap_B: Tensor, *, beta: float) -> Tensor:
    """max(0, 1 − βΔ) (SLiC of Zhao et al. 2023, with the log-ratios of Liu et al. 2024, RSO)."""
    return relu(1 - beta * gap_B)


def ipo(chosen_mean_B: Tensor, rejected_mean_B: Tensor, *, beta: float) -> Tensor:
    """(Δ − 1/(2τ))² with τ = β, of log-ratios per token (Azar et al. 2024, eq. 17).

    The division by length is not in the paper; its authors confirmed it to the makers of TRL.
    """
    return (chosen_mean_B - rejected_mean_B - 1 / (2 * beta)) ** 2


def sigmoid_norm(chosen_mean_B: Tensor, rejected_mean_B: Tensor, *, beta: float, smoothing: float = 0.0) -> Tensor:
    """`sigmoid` of the gap of log-ratios per token: length-normalised DPO (Lambert et al. 2024, Tülu 3, arXiv
    2411.15124, eq. 6, with β = 5)."""
    return sigmoid(chosen_mean_B - rejected_mean_B, beta=beta, smoothing=smoothing)


def wpo_weights(logps_BT: Tensor, log_sum_squares_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """exp(mean over tokens of log π(token) − log Σ_v π(v)²), [B], without gradient: 1 for a completion as likely as one
    that the policy samples (Zhou et al. 2024, WPO, arXiv 2406.11827, eq. 2). A pair's loss is multiplied by the weights
    of both completions.
    """
    aligned_BT = (logps_BT.detach() - log_sum_squares_BT) * mask_BT
    return (aligned_BT.sum(1) / mask_BT.sum(1)).exp()


def sppo_hard(chosen_B: Tensor, rejected_B: Tensor, *, beta: float) -> Tensor:
    """(l_c − 1/(2β))² + (l_r + 1/(2β))², the self-play loss with P(chosen beats rejected) = 1 (Wu et al. 2024, eq. 4.7
    with η = 1/β)."""
    return (chosen_B - 0.5 / beta) ** 2 + (rejected_B + 0.5 / beta) ** 2


def nca(chosen_B: Tensor, rejected_B: Tensor, *, beta: float) -> Tensor:
    """−log σ(βl_c) − ½ log σ(−βl_c) − ½ log σ(−βl_r) (noise contrastive alignment, Chen et al. 2024, for pairs)."""
    others_B = logsigmoid(-beta * chosen_B) + logsigmoid(-beta * rejected_B)
    return -logsigmoid(beta * chosen_B) - 0.5 * others_B


def exo(gap_B: Tensor, *, beta: float, smoothing: float) -> Tensor:
    """KL(policy's preference ‖ labels smoothed by ε > 0) = σ(βΔ)[log σ(βΔ) − log(1−ε)] + σ(−βΔ)[log σ(−βΔ) − log ε]
    (Ji et al. 2024, eq. 16)."""
    won_B, lost_B = logsigmoid(beta * gap_B), logsigmoid(-beta * gap_B)
    return won_B.exp() * (won_B - log(1 - smoothing)) + lost_B.exp() * (lost_B - log(smoothing))


def apo_zero(chosen_B: Tensor, rejected_B: Tensor, *, beta: float) -> Tensor:
    """1 − σ(βl_c) + σ(βl_r): chosen up, rejected down (D'Oosterlinck et al. 2024, eq. 7)."""
    return 1 - torch.sigmoid(beta * chosen_B) + torch.sigmoid(beta * rejected_B)


def apo_down(chosen_B: Tensor, rejected_B: Tensor, *, beta: float) -> Tensor:
    """σ(βl_c) + 1 − σ(βΔ): both down, rejected further, for a policy better than its data (D'Oosterlinck et al.
    2024, eq. 8)."""
    return torch.sigmoid(beta * chosen_B) + 1 - torch.sigmoid(beta * (chosen_B - rejected_B))


def discopop(gap_B: Tensor, *, beta: float, tau: float) -> Tensor:
    """(1 − m)·(−log σ(βΔ)) + m·exp(−βΔ) with m = σ(βΔ/τ) (the discovered loss LRML of Lu et al. 2024, eq. 5)."""
    mix_B = torch.sigmoid(beta * gap_B / tau)
    exponential_B = torch.exp((-beta * gap_B).clamp(max=LARGEST_EXPONENT))
    return (1 - mix_B) * -logsigmoid(beta * gap_B) + mix_B * exponential_B


def bco(chosen_B: Tensor, rejected_B: Tensor, *, beta: float, shift: float) -> Tensor:
    """−log σ(βl_c − δ) − log σ(−(βl_r − δ)), a binary classifier of single completions with the running mean reward δ
    as threshold (Jung et al. 2024)."""
    return -logsigmoid(beta * chosen_B - shift) - logsigmoid(-(beta * rejected_B - shift))


def aot(margin_B: Tensor, ref_margin_B: Tensor, *, beta: float, smoothing: float) -> Tensor:
    """`sigmoid` of the policy's margin log π(chosen) − log π(rejected) over the reference's margin *of equal rank* in
    the global batch, so that one distribution dominates the other (Melnyk et al. 2024, paired)."""
    return sigmoid(margin_B - ref_margin_B, beta=beta, smoothing=smoothing)


def aot_unpaired(
    chosen_B: Tensor,
    rejected_B: Tensor,
    *,
    chosen_of_rank_B: Tensor,
    rejected_of_rank_B: Tensor,
    beta: float,
    smoothing: float,
) -> Tensor:
    """`sigmoid` of chosen log-ratios over the rejected ones of equal rank in the global batch (Melnyk et al. 2024).

    `rejected_of_rank_B` holds the constants that chosen log-ratios are compared with; `chosen_of_rank_B` those for
    rejected ones. The two terms together have the gradient of the sum over the global batch, on any division into
    micro-batches; the second term contributes its gradient only.
    """
    up_B = sigmoid(chosen_B - rejected_of_rank_B, beta=beta, smoothing=smoothing)
    down_B = sigmoid(chosen_of_rank_B - rejected_B, beta=beta, smoothing=smoothing)
    return up_B + down_B - down_B.detach()


def match_by_rank(values_B: Tensor, others_B: Tensor) -> Tensor:
    """For each value, the element of `others_B` with the same rank, [B]."""
    return others_B.sort().values[values_B.argsort().argsort()]


def f_prime(log_ratio_B: Tensor, divergence: Divergence, alpha: float) -> Tensor:
    """f′(u) − f′(1) with u = π/π_ref, which replaces the log-ratio under another f-divergence (Wang et al. 2024,
    table 1): log u, 1 − 1/u, log(2u/(1+u)) or (1 − u^−α)/α."""
    if divergence == "reverse_kl":
        return log_ratio_B
    if divergence == "js":
        return log_ratio_B - softplus(log_ratio_B) + log(2)
    power = 1.0 if divergence == "forward_kl" else alpha
    return (1 - torch.exp((-power * log_ratio_B).clamp(max=LARGEST_EXPONENT))) / power


def length_desensitised(logps_BT: Tensor, mask_BT: Tensor, other_length_B: Tensor, weight: float) -> Tensor:
    """Σ of a completion's log-probabilities, with those beyond the other's length times `weight`, [B] (LD-DPO of Liu et
    al. 2024, eq. 10); weight 1 is the plain sum."""
    beyond_BT = mask_BT.cumsum(1) > other_length_B[:, None]
    return (logps_BT * torch.where(beyond_BT, weight, 1.0)).sum(1)


@dataclass(frozen=True, kw_only=True)
class PairTerms:
    """The inputs of the losses of the family; tensors are [B]."""

    chosen_B: Tensor
    """The chosen completion's log-ratio, or `f_prime` of it under another divergence."""
    rejected_B: Tensor
    chosen_mean_B: Tensor
    """Log-ratio divided by the completion's tokens."""
    rejected_mean_B: Tensor
    margin_B: Tensor
    """log π(chosen) − log π(rejected)."""
    ref_margin_of_rank_B: Tensor
    """The reference's margin with the rank of this margin in the global batch."""
    chosen_of_rank_B: Tensor
    """The chosen log-ratio with the rank of this pair's rejected one."""
    rejected_of_rank_B: Tensor
    beta: float
    smoothing: float
    tau: float
    shift: float

    @property
    def gap_B(self) -> Tensor:
        """Δ = l_c − l_r."""
        return self.chosen_B - self.rejected_B


LossName = Literal[
    "sigmoid",
    "sigmoid_norm",
    "robust",
    "hinge",
    "ipo",
    "sppo_hard",
    "nca",
    "exo",
    "apo_zero",
    "apo_down",
    "discopop",
    "bco",
    "aot",
    "aot_unpaired",
]

LOSSES: Mapping[LossName, Callable[[PairTerms], Tensor]] = {
    "sigmoid": lambda t: sigmoid(t.gap_B, beta=t.beta, smoothing=t.smoothing),
    "sigmoid_norm": lambda t: sigmoid_norm(t.chosen_mean_B, t.rejected_mean_B, beta=t.beta, smoothing=t.smoothing),
    "robust": lambda t: robust(t.gap_B, beta=t.beta, smoothing=t.smoothing),
    "hinge": lambda t: hinge(t.gap_B, beta=t.beta),
    "ipo": lambda t: ipo(t.chosen_mean_B, t.rejected_mean_B, beta=t.beta),
    "sppo_hard": lambda t: sppo_hard(t.chosen_B, t.rejected_B, beta=t.beta),
    "nca": lambda t: nca(t.chosen_B, t.rejected_B, beta=t.beta),
    "exo": lambda t: exo(t.gap_B, beta=t.beta, smoothing=t.smoothing),
    "apo_zero": lambda t: apo_zero(t.chosen_B, t.rejected_B, beta=t.beta),
    "apo_down": lambda t: apo_down(t.chosen_B, t.rejected_B, beta=t.beta),
    "discopop": lambda t: discopop(t.gap_B, beta=t.beta, tau=t.tau),
    "bco": lambda t: bco(t.chosen_B, t.rejected_B, beta=t.beta, shift=t.shift),
    "aot": lambda t: aot(t.margin_B, t.ref_margin_of_rank_B, beta=t.beta, smoothing=t.smoothing),
    "aot_unpaired": lambda t: aot_unpaired(
        t.chosen_B,
        t.rejected_B,
        chosen_of_rank_B=t.chosen_of_rank_B,
        rejected_of_rank_B=t.rejected_of_rank_B,
        beta=t.beta,
        smoothing=t.smoothing,
    ),
}

SMOOTHED: frozenset[LossName] = frozenset({"sigmoid", "sigmoid_norm", "robust", "exo", "aot", "aot_unpaired"})
"""Losses with label smoothing."""
PER_TOKEN: frozenset[LossName] = frozenset({"ipo", "sigmoid_norm"})
"""Losses of log-ratios per token."""
WITHOUT_DIVERGENCE: frozenset[LossName] = frozenset({"ipo", "sigmoid_norm", "aot"})
"""Losses on which `divergence` has no effect."""
RANKED: frozenset[LossName] = frozenset({"aot", "aot_unpaired"})
"""Losses that match pairs of the global batch by rank."""
