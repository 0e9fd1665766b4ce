"""KL(policy ‖ reference): estimates from sampled tokens, the exact value, and the gradients of both.

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

from typing import Literal

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


def adapt_kl_coef(coef: float, kl: float, *, target: float, samples: int, horizon: int) -> float:
    """Proportional controller of Ziegler et al. 2019: coef · (1 + clip(KL/target − 1, ±0.2) · n/horizon)."""
    return coef * (1 + min(max(kl / target - 1, -0.2), 0.2) * samples / horizon)
