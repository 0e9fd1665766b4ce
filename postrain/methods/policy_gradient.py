"""Base of the policy-gradient methods: the KL penalty and the entropy bonus of PPO and the GRPO family.

Axes: B completions, T completion tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from postrain.errors import ConfigError
from postrain.hardware import collectives
from postrain.losses.divergence import KLEstimator, kl
from postrain.methods.rollout_correction import RolloutCorrection
from postrain.models.scoring import ReferenceScores, Scores, score, score_with_reference
from postrain.types import Max, Mean, NonNegative, Positive, Rows

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


@dataclass(frozen=True)
class EntropyControl:
    """Weight of the entropy bonus and the entropy of the last update [nats/token] (He et al. 2025, Skywork-OR1, arXiv
    2505.22312, section 4: adaptive entropy control)."""

    coef: float
    entropy: float | None = None
    """None before the first update."""

    def weight(self, target: float) -> float:
        """The coefficient, or 0 while the entropy is above the target."""
        return self.coef if self.entropy is None or self.entropy <= target else 0.0

    def after(self, entropy: float, *, target: float, step: float) -> EntropyControl:
        """After one more update: coef + step if its entropy is below the target, else coef − step, within [0, 1]."""
        return EntropyControl(min(1.0, max(0.0, self.coef + (step if entropy < target else -step))), entropy)


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
    """Weight of the entropy bonus [per nat]; 0 disables it. With entropy_target, its initial value."""
    entropy_target: Positive | None = None
    """Target entropy [nats/token] of the adaptive entropy controller (Skywork-OR1), which sets the weight of the
    entropy bonus; null keeps it at entropy_coef."""
    entropy_coef_delta: Positive = 0.005
    """Change of the weight per update: upwards while the entropy is below entropy_target, else downwards, from 0 to 1.
    There is no bonus while the entropy is above the target."""

    published_kl: ClassVar[frozenset[tuple[KLEstimator, KLPlacement]]] = frozenset()
    """Combinations with a biased gradient that the method's paper uses."""

    def conditional_options(self) -> dict[str, str | None]:
        needed = None if self.entropy_target else "method.entropy_target"
        return {**super().conditional_options(), "entropy_coef_delta": needed}

    def on_model_attached(self) -> None:
        super().on_model_attached()
        self.coef = self.kl_coef
        self.entropy_control = EntropyControl(self.entropy_coef)

    def check(self) -> None:
        super().check()
        if self.has_biased_kl():
            reason = BIASED_KL[self.kl_estimator, self.kl_in]
            raise ConfigError(f"method.kl_estimator={self.kl_estimator} with method.kl_in={self.kl_in}: {reason}")

    def has_biased_kl(self) -> bool:
        """Whether the KL penalty has another gradient than the KL, and the method's paper does not use it."""
        chosen = (self.kl_estimator, self.kl_in)
        return chosen in BIASED_KL and chosen not in self.published_kl

    def logs_kl(self) -> bool:
        return self.needs_reference()

    def kl_in_this_loss(self) -> bool:
        """Whether the loss of this update has a KL term."""
        return self.kl_in == "loss" and self.coef > 0

    @property
    def entropy_weight(self) -> float:
        """Weight of the entropy bonus in this update."""
        return self.entropy_coef if self.entropy_target is None else self.entropy_control.weight(self.entropy_target)

    def adapt_entropy(self) -> None:
        """Moves the weight of the entropy bonus towards entropy_target, once per update."""
        found = self.accumulated.get("entropy/exact", Mean(0.0, 0.0))
        if self.entropy_target is None or not isinstance(found, Mean):
            return
        self.accumulate({"entropy/coef": Max(self.entropy_weight)})
        local = torch.tensor([float(found.total), float(found.count)], device=self.device)
        total, tokens = collectives.all_sum(local)
        if tokens:
            self.entropy_control = self.entropy_control.after(
                float(total / tokens), target=self.entropy_target, step=self.entropy_coef_delta
            )

    def state(self) -> dict[str, Any]:
        control = {} if self.entropy_target is None else {"entropy_control": asdict(self.entropy_control)}
        return {**super().state(), **control}

    def load_state(self, state: Mapping[str, Any]) -> None:
        super().load_state(state)
        if self.entropy_target is not None and "entropy_control" in state:
            self.entropy_control = EntropyControl(**state["entropy_control"])

    def scored(self, rows: Rows, head: Callable[[Tensor], Tensor] | None = None) -> Scores | ReferenceScores:
        """Differentiable scores of these rows under the policy, with their entropy, differentiable if the loss has a
        bonus; with the exact KL in the loss, also its value."""
        entropy = "differentiable" if self.entropy_weight else "constant"
        options: Any = {"temperature": self.sampling.temperature, "entropy": entropy, "head": head}
        if self.kl_in_this_loss() and self.kl_estimator == "exact":
            return score_with_reference(self.policy, self.reference_policy, rows, **options)
        return score(self.policy, rows, **options)

    def kl_term(self, found: Scores | ReferenceScores, ref_logps_BT: Tensor) -> Tensor:
        """The KL term of each token by `kl_estimator`, differentiable, [B, T]."""
        if isinstance(found, ReferenceScores):
            return found.kl_BT
        assert self.kl_estimator != "exact"
        return kl(found.logps_BT, ref_logps_BT, self.kl_estimator)
