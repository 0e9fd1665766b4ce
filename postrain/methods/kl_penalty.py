"""The KL penalty of PPO and of the GRPO family: which estimate of KL(policy ‖ reference) is trained on, and where.

What counts is the expected gradient over tokens that the policy draws, not the expected value (Tang and Munos 2025, "On
a few pitfalls in KL divergence gradient estimation for RL"). Taken off the reward, an estimate multiplies ∇log π; in
the loss it is differentiated itself. One token, log r = log π_ref − log π:

    estimate   off the reward: E[estimate · ∇log π]     in the loss: E[∇ estimate]
    k1         ∇KL(π ‖ ref)                             0
    k2         not a gradient of a KL                   ∇KL(π ‖ ref)
    k3         not a gradient of a KL                   ∇KL(ref ‖ π)
    exact      0                                        ∇KL(π ‖ ref)

Off the reward, the KL of later tokens also reaches the earlier ones: the gradient is that of the whole completion's KL.
In the loss each token's KL is minimised given the text before it. k2's gradient holds in the first pass over a rollout,
while the policy is the one that sampled; the exact KL sums over the vocabulary and needs no sampled token, at the price
of one forward of the reference in each pass.

Axes: B completions, T completion tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor

from postrain.methods.online import Online
from postrain.models.scoring import Comparison, Scores, compare, score
from postrain.ops import KLEstimator, kl_estimate
from postrain.types import ConfigError, NonNegative, Rows

KLPlace = Literal["reward", "loss"]

WRONG: Mapping[tuple[KLEstimator, KLPlace], str] = {
    ("k2", "reward"): "its expected gradient is not that of the KL; use method.kl_estimator=k1, or method.kl_in=loss",
    ("k3", "reward"): "its expected gradient is not that of the KL; use method.kl_estimator=k1",
    ("exact", "reward"): "it is the same number whichever token is drawn, so it has no gradient; use method.kl_in=loss",
    ("k1", "loss"): "its expected gradient is 0; use method.kl_in=reward, or method.kl_estimator=exact or k2",
    ("k3", "loss"): (
        "its expected gradient is that of KL(reference ‖ policy), not of KL(policy ‖ reference); "
        "use method.kl_estimator=exact or k2"
    ),
}
"""Why a combination is refused, and what to use instead."""


class KLPenalised(Online):
    """A policy-gradient method with a KL penalty and an entropy bonus."""

    kl_coef: NonNegative
    """Weight of KL(policy ‖ reference)."""
    kl_estimator: KLEstimator
    """The estimate that is trained on: k1, k2, k3 or exact."""
    kl_in: KLPlace
    """Whether it is taken off the reward or added to the loss."""
    entropy_coef: NonNegative
    """Weight of an entropy bonus."""

    published_kl: ClassVar[frozenset[tuple[KLEstimator, KLPlace]]] = frozenset()
    """Combinations that the method's paper uses although their gradient is biased."""

    def attached(self) -> None:
        super().attached()
        self.coef = self.kl_coef

    def check(self) -> None:
        super().check()
        chosen = (self.kl_estimator, self.kl_in)
        if chosen in WRONG and chosen not in self.published_kl:
            raise ConfigError(
                f"method.kl_estimator={self.kl_estimator} with method.kl_in={self.kl_in}: {WRONG[chosen]}"
            )

    def kl_moves_loss(self) -> bool:
        """Whether the loss of this update has a KL term."""
        return self.kl_in == "loss" and self.coef > 0

    def scored(self, rows: Rows, head: Callable[[Tensor], Tensor] | None = None) -> Scores | Comparison:
        """The policy on these rows, differentiable, beside the reference where the loss needs their exact KL."""
        asked: Any = {"temperature": self.sampling.temperature, "entropy": self.entropy_coef > 0, "head": head}
        if self.kl_moves_loss() and self.kl_estimator == "exact":
            return compare(self.policy, self.reference_policy, rows, **asked)
        return score(self.policy, rows, **asked)

    def kl_in_loss(self, found: Scores | Comparison, ref_logps_BT: Tensor) -> Tensor:
        """The chosen estimate at each token, differentiable, [B, T], or [B, 1] for whole completions."""
        if isinstance(found, Comparison):
            return found.kl_BT
        assert self.kl_estimator != "exact"
        return kl_estimate(found.logps_BT, ref_logps_BT, self.kl_estimator)
