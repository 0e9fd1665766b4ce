"""Base of the policy-gradient methods: the KL penalty and the entropy bonus of PPO and the GRPO family.

Axes: B completions, T completion tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor

from postrain.errors import ConfigError
from postrain.losses.divergence import KLEstimator, kl
from postrain.methods.rollout_correction import RolloutCorrection
from postrain.models.scoring import ReferenceScores, Scores, score, score_with_reference
from postrain.types import NonNegative, Rows

KLPlacement = Literal["reward", "loss"]

BIASED_KL: Mapping[tuple[KLEstimator, KLPlacement], str] = {
    ("k2", "reward"): "its expected gradient is not that of the KL; use method.kl_estimator=k1, or method.kl_in=loss",
    ("k3", "reward"): "its expected gradient is not that of the KL; use method.kl_estimator=k1",
    ("exact", "reward"): "it does not depend on the sampled token and has no gradient; use method.kl_in=loss",
    ("k1", "loss"): "its expected gradient is 0; use method.kl_in=reward, or method.kl_estimator=exact or k2",
    ("k3", "loss"): (
        "its expected gradient is that of KL(reference ‖ policy), not of KL(policy ‖ reference); "
        "use method.kl_estimator=exact or k2"
    ),
}
"""Rejected combinations with reason and remedy; losses/divergence.py has the whole table."""


class PolicyGradient(RolloutCorrection):
    """Base of policy-gradient methods with a KL penalty and an entropy bonus."""

    kl_coef: NonNegative = 0.0
    """Weight of KL(policy ‖ reference); 0 needs no reference."""
    kl_estimator: KLEstimator = "k1"
    """KL estimator of the penalty: k1 with kl_in=reward; exact (a sum over the vocabulary), k2 or k3 with kl_in=loss,
    where exact and k2 have the gradient of the KL. All estimates are logged."""
    kl_in: KLPlacement = "reward"
    """Where the KL penalty enters. reward: subtracted from the reward (k1). loss: added to the loss (exact, k2, k3)."""
    entropy_coef: NonNegative = 0.0
    """Weight of the entropy bonus [per nat]; 0 disables it."""

    published_kl: ClassVar[frozenset[tuple[KLEstimator, KLPlacement]]] = frozenset()
    """Combinations with a biased gradient that the method's paper uses."""

    def on_model_attached(self) -> None:
        super().on_model_attached()
        self.coef = self.kl_coef

    def check(self) -> None:
        super().check()
        chosen = (self.kl_estimator, self.kl_in)
        if chosen in BIASED_KL and chosen not in self.published_kl:
            raise ConfigError(
                f"method.kl_estimator={self.kl_estimator} with method.kl_in={self.kl_in}: {BIASED_KL[chosen]}"
            )

    def kl_in_this_loss(self) -> bool:
        """Whether the loss of this update has a KL term."""
        return self.kl_in == "loss" and self.coef > 0

    def scored(self, rows: Rows, head: Callable[[Tensor], Tensor] | None = None) -> Scores | ReferenceScores:
        """Differentiable scores of these rows under the policy; with the exact KL in the loss, also its value."""
        options: Any = {"temperature": self.sampling.temperature, "entropy": self.entropy_coef > 0, "head": head}
        if self.kl_in_this_loss() and self.kl_estimator == "exact":
            return score_with_reference(self.policy, self.reference_policy, rows, **options)
        return score(self.policy, rows, **options)

    def kl_term(self, found: Scores | ReferenceScores, ref_logps_BT: Tensor) -> Tensor:
        """The KL term of each token by `kl_estimator`, differentiable, [B, T], or [B, 1] for whole completions."""
        if isinstance(found, ReferenceScores):
            return found.kl_BT
        assert self.kl_estimator != "exact"
        return kl(found.logps_BT, ref_logps_BT, self.kl_estimator)
