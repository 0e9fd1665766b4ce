"""KL(policy ‖ reference): estimates from sampled tokens, the exact value, and the gradients of both; divergences of
whole distributions for distillation.

Training depends on the expected gradient over tokens sampled from the policy, not on the expected value (Tang and Munos
2025, "On a few pitfalls in KL divergence gradient estimation for RL"). Subtracted from the reward, an estimate
multiplies ∇log π; in the loss, it is differentiated. For one token, with log r = log π_ref − log π:

    estimate   in the reward: E[estimate · ∇log π]      in the loss: E[∇ estimate]
    k1         ∇KL(π ‖ ref)                             0
    k2         not a gradient of a KL                   ∇KL(π ‖ ref)
    k3         not a gradient of a KL                   ∇KL(ref ‖ π)
    exact      0                                        ∇KL(π ‖ ref)

In the reward, the KL of later tokens also affects earlier ones: the gradient is that of the KL of whole completions. In
the loss, each token's KL is minimised given its prefix. k2 has this gradient in the first pass over a rollout, while
the policy equals the sampling policy. The exact KL sums over the vocabulary and needs no sampled token, but a forward
pass of the reference in each epoch.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

SampledKL = Literal["k1", "k2", "k3"]
KLEstimator = Literal["k1", "k2", "k3", "exact"]


def kl(logps: Tensor, ref_logps: Tensor, estimator: SampledKL = "k3") -> Tensor:
    """Estimate of KL(policy ‖ reference) at tokens sampled from the policy, of the shape of `logps` (Schulman 2020,
    "Approximating KL divergence").

    With log r = ref − policy: k1 = −log r (unbiased), k2 = ½ (log r)² (low variance), k3 = r − 1 − log r (both, ≥ 0).
    Raises ValueError for another estimator.
    """
    log_ratio = ref_logps - logps
    if estimator == "k1":
        return -log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio**2
    if estimator == "k3":
        return log_ratio.exp() - 1 - log_ratio
    raise ValueError(f"estimator={estimator!r}: choose k1, k2 or k3; exact_kl takes whole distributions")


def exact_kl(logps: Tensor, ref_logps: Tensor, probs: Tensor | None = None) -> Tensor:
    """Σ π (log π − log π_ref) over the vocabulary, [..., V] → [...]; `probs` is exp(logps), if already computed."""
    return ((logps.exp() if probs is None else probs) * (logps - ref_logps)).sum(-1)


def forward_kl(logps: Tensor, ref_logps: Tensor, probs: Tensor | None = None) -> Tensor:
    """Σ π_ref (log π_ref − log π) over the vocabulary, [..., V] → [...]: KL(reference ‖ policy). It has the signature
    of `exact_kl`; `probs` is not used."""
    return (ref_logps.exp() * (ref_logps - logps)).sum(-1)


def generalized_jsd(logps: Tensor, ref_logps: Tensor, probs: Tensor | None = None, *, beta: float = 0.5) -> Tensor:
    """Generalised Jensen-Shannon divergence of reference (the teacher T) and policy (the student S) over the
    vocabulary, [..., V] → [...] (GKD: Agarwal et al. 2023, "On-Policy Distillation of Language Models", arXiv
    2306.13649).

        β KL(T ‖ M) + (1 − β) KL(S ‖ M),   M = β T + (1 − β) S

    Divided by β it approaches KL(T ‖ S) for β → 0, and divided by 1 − β it approaches KL(S ‖ T) for β → 1. β = 0 and
    β = 1 give these two KLs themselves, as TRL's `generalized_jsd_loss` does. `probs` is exp(logps), if already
    computed. Raises ValueError for β outside [0, 1].
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta={beta}: expected a number from 0 to 1")
    if beta == 0:
        return forward_kl(logps, ref_logps)
    if beta == 1:
        return exact_kl(logps, ref_logps, probs)
    mixture = torch.logaddexp(logps + math.log1p(-beta), ref_logps + math.log(beta))
    return beta * exact_kl(ref_logps, mixture) + (1 - beta) * exact_kl(logps, mixture, probs)


def skewed_forward_kl(logps: Tensor, ref_logps: Tensor, probs: Tensor | None = None, *, alpha: float = 0.1) -> Tensor:
    """Skew KL of the reference (the teacher T) from the policy (the student S) over the vocabulary, [..., V] → [...]
    (DistiLLM: Ko et al. 2024, arXiv 2402.03898, equation 3).

        KL(T ‖ α T + (1 − α) S)

    α = 0 is KL(T ‖ S). With α > 0 it is at most −ln α, and the gradient of a token that the student rules out stays
    finite. It has the signature of `exact_kl`; `probs` is not used. Raises ValueError for α outside [0, 1).
    """
    return forward_kl(_skewed(logps, ref_logps, alpha), ref_logps)


def skewed_reverse_kl(logps: Tensor, ref_logps: Tensor, probs: Tensor | None = None, *, alpha: float = 0.1) -> Tensor:
    """Skew reverse KL, [..., V] → [...]: KL(S ‖ α S + (1 − α) T), in the notation of `skewed_forward_kl`; α = 0 is
    KL(S ‖ T). `probs` is exp(logps), if already computed. Raises ValueError for α outside [0, 1)."""
    return exact_kl(logps, _skewed(ref_logps, logps, alpha), probs)


def with_rest(logps: Tensor) -> Tensor:
    """Log-probabilities of some tokens and of all others together, log(1 − Σ exp), [..., K] → [..., K + 1].

    Below 1e-6 the rest is rounding of float32 and is taken as 1e-6. Divergences of such outcomes are lower bounds of
    those over the vocabulary.
    """
    rest = (1 - logps.exp().sum(-1, keepdim=True)).clamp(min=1e-6).log()
    return torch.cat([logps, rest], -1)


def _skewed(logps: Tensor, other_logps: Tensor, alpha: float) -> Tensor:
    """log((1 − α) exp(logps) + α exp(other_logps))."""
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha={alpha}: expected a number from 0 to below 1")
    if alpha == 0:
        return logps
    return torch.logaddexp(logps + math.log1p(-alpha), other_logps + math.log(alpha))


def adapt_kl_coef(coef: float, kl: float, *, target: float, samples: int, horizon: int) -> float:
    """Proportional controller of Ziegler et al. 2019: coef · (1 + clip(KL/target − 1, ±0.2) · n/horizon)."""
    return coef * (1 + min(max(kl / target - 1, -0.2), 0.2) * samples / horizon)


def kl_from_uniform(logits: Tensor) -> Tensor:
    """KL(uniform ‖ softmax(logits)) = logsumexp(z) − mean(z) − log V over the last axis, in nats: self-certainty (Kang
    et al. 2025, arXiv 2502.18581, eq. 6)."""
    return logits.logsumexp(-1) - logits.mean(-1) - math.log(logits.shape[-1])
