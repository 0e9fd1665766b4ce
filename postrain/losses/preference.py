"""Losses of preference pairs and of single completions with a label: DPO and its family, KTO, ORPO, SimPO, CPO.

Axes: B pairs or completions, T completion tokens. Log-probabilities are natural and, unless a docstring says "mean",
sums over a completion's tokens. Each loss takes `reduction`: mean, sum or none.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from postrain.losses.dpo_variants import (
    LOSSES,
    PER_TOKEN,
    RANKED,
    SMOOTHED,
    Divergence,
    LossName,
    PairTerms,
    f_prime,
    match_by_rank,
    sigmoid,
)
from postrain.losses.reduction import Reduction, reduce


def pair_terms(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    smoothing: float = 0.0,
    divergence: Divergence = "reverse_kl",
    alpha: float = 0.5,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
    partners: tuple[Tensor, Tensor, Tensor] | None = None,
    tau: float = 0.05,
    shift: float = 0.0,
) -> PairTerms:
    """The inputs of the losses of the family, from log-probabilities [B].

    `partners` are from `rank_partners`; by default zeros, for losses that do not match by rank. Without lengths, means
    equal sums.
    """
    chosen_B, rejected_B = policy_chosen - reference_chosen, policy_rejected - reference_rejected
    ref_margin_B, chosen_of_rank_B, rejected_of_rank_B = partners or (torch.zeros_like(chosen_B),) * 3
    return PairTerms(
        chosen_B=f_prime(chosen_B, divergence, alpha),
        rejected_B=f_prime(rejected_B, divergence, alpha),
        chosen_mean_B=chosen_B if chosen_lengths is None else chosen_B / chosen_lengths,
        rejected_mean_B=rejected_B if rejected_lengths is None else rejected_B / rejected_lengths,
        margin_B=policy_chosen - policy_rejected,
        ref_margin_of_rank_B=ref_margin_B,
        chosen_of_rank_B=chosen_of_rank_B,
        rejected_of_rank_B=rejected_of_rank_B,
        beta=beta,
        smoothing=smoothing,
        tau=tau,
        shift=shift,
    )


def rank_partners(
    chosen: Tensor, rejected: Tensor, margin: Tensor, reference_margin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """For each pair, the constants of equal rank in the batch that aot and aot_unpaired compare it with, [B] each: the
    reference's margin, the chosen log-ratio (for the rejected one), the rejected log-ratio (for the chosen one)."""
    return (match_by_rank(margin, reference_margin), match_by_rank(rejected, chosen), match_by_rank(chosen, rejected))


def dpo(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: float = 0.1,
    *,
    loss_type: LossName = "sigmoid",
    label_smoothing: float = 0.0,
    divergence: Divergence = "reverse_kl",
    alpha: float = 0.5,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
    tau: float = 0.05,
    shift: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """−log σ(β (log π/π_ref (chosen) − log π/π_ref (rejected))), a mean over pairs (Rafailov et al. 2023, eq. 7).

    Log-probabilities are [B]. `loss_type` chooses another loss of the family (dpo_variants.py has their equations): ipo
    and sigmoid_norm divide by `chosen_lengths` and `rejected_lengths` [B] in tokens, discopop has the temperature
    `tau`, bco the threshold `shift`, aot and aot_unpaired compare pairs of equal rank in this batch. `label_smoothing`
    is the assumed share of wrong labels; `divergence` replaces the reverse KL, `alpha` is α of divergence=alpha. Raises
    ValueError for options that a loss ignores, and for missing ones.
    """
    if loss_type not in LOSSES:
        raise ValueError(f"loss_type={loss_type!r}: choose one of {', '.join(LOSSES)}")
    if label_smoothing and loss_type not in SMOOTHED:
        raise ValueError(f"label_smoothing={label_smoothing} has no effect on loss_type={loss_type}; leave it 0")
    if loss_type == "exo" and not label_smoothing:
        raise ValueError("label_smoothing=0: exo takes its logarithm; give it 0.001")
    if loss_type in PER_TOKEN and (chosen_lengths is None or rejected_lengths is None):
        raise ValueError(f"chosen_lengths, rejected_lengths: {loss_type} takes log-ratios per token; give both")

    terms = partial(
        pair_terms,
        policy_chosen_logps,
        policy_rejected_logps,
        reference_chosen_logps,
        reference_rejected_logps,
        beta=beta,
        smoothing=label_smoothing,
        divergence=divergence,
        alpha=alpha,
        chosen_lengths=chosen_lengths,
        rejected_lengths=rejected_lengths,
        tau=tau,
        shift=shift,
    )
    found = terms()
    if loss_type in RANKED:
        constants = (
            found.chosen_B,
            found.rejected_B,
            found.margin_B,
            reference_chosen_logps - reference_rejected_logps,
        )
        found = terms(partners=rank_partners(*(value_B.detach() for value_B in constants)))
    return reduce(LOSSES[loss_type](found), reduction)


def ipo(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: float = 0.1,
    *,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    reduction: Reduction = "mean",
) -> Tensor:
    """(Δ − 1/(2β))² of log-ratios per token, a mean over pairs: `dpo` with loss_type=ipo (Azar et al. 2024, eq. 17)."""
    return dpo(
        policy_chosen_logps,
        policy_rejected_logps,
        reference_chosen_logps,
        reference_rejected_logps,
        beta,
        loss_type="ipo",
        chosen_lengths=chosen_lengths,
        rejected_lengths=rejected_lengths,
        reduction=reduction,
    )


def kto(
    log_ratios: Tensor,
    desirable: Tensor,
    baseline: Tensor | float,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """w · (1 − σ(β(l − z))) of desirable completions, w · (1 − σ(β(z − l))) of undesirable ones, a mean over all
    (Ethayarajh et al. 2024, eq. 8).

    l = log π(completion) − log π_ref(completion) is `log_ratios` [B]; `desirable` [B] is bool; z is the `baseline` from
    `kto_baseline`, a scalar or [B]. With z = 0 this is APO-zero for single completions (D'Oosterlinck et al. 2024).
    """
    signed_B = torch.where(desirable, log_ratios - baseline, baseline - log_ratios)
    weight_B = torch.where(desirable, desirable_weight, undesirable_weight)
    return reduce(weight_B * (1 - torch.sigmoid(beta * signed_B)), reduction)


def kto_baseline(log_ratio_sum: Tensor, count: Tensor | int) -> Tensor:
    """max(0, mean log-ratio of mismatched completions), a scalar: a biased, cheap estimate of KL(policy ‖ reference)
    (Ethayarajh et al. 2024, section 4.1)."""
    return (log_ratio_sum / count).clamp(min=0)


def log_odds(mean_logps: Tensor) -> Tensor:
    """log(P / (1 − P)) with P = exp(mean log-probability per token), [B], in float32 (Hong et al. 2024, eq. 4).

    log P is at most −1e-7, so that odds are finite.
    """
    clamped_B = mean_logps.float().clamp(max=-1e-7)
    return clamped_B - torch.log(-torch.expm1(clamped_B))


def odds_ratio(chosen_mean_logps: Tensor, rejected_mean_logps: Tensor) -> Tensor:
    """−log σ(log odds(chosen) − log odds(rejected)) of each pair, [B] (Hong et al. 2024, eq. 7)."""
    return -logsigmoid(log_odds(chosen_mean_logps) - log_odds(rejected_mean_logps))


def orpo(
    chosen_mean_logps: Tensor, rejected_mean_logps: Tensor, *, odds_coef: float = 1.0, reduction: Reduction = "mean"
) -> Tensor:
    """−log π(chosen) per token + odds_coef · odds-ratio loss, a mean over pairs (Hong, Lee and Thorne 2024, eq. 6).

    Both tensors are mean log-probabilities per token, [B].
    """
    return reduce(-chosen_mean_logps + odds_coef * odds_ratio(chosen_mean_logps, rejected_mean_logps), reduction)


def alpha_reward(mean_logps: Tensor, alpha: float) -> Tensor:
    """(1 − p^−α) / α with p = exp(mean log-probability per token), [B]; its limit at α = 0 is log p (Gupta et al. 2025,
    AlphaPO, arXiv 2501.03884, eq. 6)."""
    return mean_logps if alpha == 0 else -torch.expm1(-alpha * mean_logps) / alpha


def simpo(
    chosen_mean_logps: Tensor,
    rejected_mean_logps: Tensor,
    *,
    beta: float = 10.0,
    gamma_beta_ratio: float = 0.3,
    alpha: float = 0.0,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """−log σ(β (mean log π(chosen) − mean log π(rejected)) − γ), a mean over pairs (Meng, Xia and Chen 2024, eq. 6).

    Both tensors are mean log-probabilities per token, [B]; `gamma_beta_ratio` is γ/β, the margin [nats/token]. `alpha`
    other than 0 replaces them by `alpha_reward` (AlphaPO).
    """
    gap_B = alpha_reward(chosen_mean_logps, alpha) - alpha_reward(rejected_mean_logps, alpha) - gamma_beta_ratio
    return reduce(sigmoid(gap_B, beta=beta, smoothing=label_smoothing), reduction)


def cpo(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    *,
    chosen_lengths: Tensor,
    beta: float = 0.1,
    sft_coef: float = 0.2,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """−log σ(β (log π(chosen) − log π(rejected))) − sft_coef · log π(chosen) per token, a mean over pairs (Xu et al.
    2024). `chosen_lengths` [B] are the chosen completions' tokens.
    """
    loss_B = sigmoid(chosen_logps - rejected_logps, beta=beta, smoothing=label_smoothing)
    return reduce(loss_B + sft_coef * -(chosen_logps / chosen_lengths), reduction)
