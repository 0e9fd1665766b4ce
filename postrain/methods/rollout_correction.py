"""Base of the methods that correct for the difference between the policy and the distribution that sampled.

An engine whose log-probabilities are the policy's own (`Engine.exact_logps`, all in float32) needs no correction: they
are the old log-probabilities, and the first mini-batch must reproduce them. Otherwise the old log-probabilities are
recomputed with the policy before the update, and the gradient of each token is multiplied by π_old/π_sampler, truncated
or masked (losses/importance_sampling.py). The importance ratio of the loss stays that to π_old (the decoupled
objective; Hilton et al. 2022; Fu et al. 2025, "AReaL").

Axes: B completions, T completion tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from postrain.errors import ConfigError
from postrain.losses.importance_sampling import ImportanceSamplingMode, importance_weights, sampling_ratio
from postrain.methods.online import Online, completion_mask
from postrain.rollout.collect import Rollouts
from postrain.types import Max, Mean, NonNegative, Positive

# Largest difference of two float32 log-probabilities due to summation order [nats].
SAMPLER_TOLERANCE = 1e-2


class RolloutCorrection(Online):
    """Adds old log-probabilities and importance weights of sampled completions."""

    rollout_importance_sampling_mode: ImportanceSamplingMode | None = "token_truncate"
    """Importance weights π_old/π_sampler where the engine does not sample from the policy (vLLM, rollout.dtype,
    top-k, top-p, min-p, mixed precision, rollout.overlap): the ratio of a token, or the product (sequence) or
    geometric mean over a completion. truncate clips ratios above clip_max (TIS); mask sets those outside clip_min and
    clip_max to 0 (MIS). null disables the weights, not their metrics."""
    rollout_importance_sampling_clip_max: Positive = 3.0
    """Upper bound of the ratio π_old/π_sampler."""
    rollout_importance_sampling_clip_min: NonNegative = 0.0
    """Lower bound of the ratio π_old/π_sampler; 0 disables it."""

    def conditional_options(self) -> dict[str, str | None]:
        needed = None if self.rollout_importance_sampling_mode else "method.rollout_importance_sampling_mode"
        bounds = dict.fromkeys(["rollout_importance_sampling_clip_min", "rollout_importance_sampling_clip_max"], needed)
        return {**super().conditional_options(), **bounds}

    def check(self) -> None:
        super().check()
        low, high = self.rollout_importance_sampling_clip_min, self.rollout_importance_sampling_clip_max
        if low > high:
            raise ConfigError(
                f"method.rollout_importance_sampling_clip_min={low:g}: expected a bound of at most "
                f"method.rollout_importance_sampling_clip_max={high:g}"
            )

    def samples_from_policy(self) -> bool:
        """Whether recorded log-probabilities are the policy's own up to rounding in float32."""
        return self.components.engine.exact_logps and self.in_float32()

    def recomputes_logps(self) -> bool:
        return self.samples_from_policy()

    def old_logps(self, rollouts: Rollouts) -> Tensor:
        """Old log-probabilities, [B, T], recorded while sampling or recomputed; sets `first_pass`."""
        # In lower precision engine and scorer round differently. The first ratio must be 1, so recompute.
        self.first_pass = self.samples_from_policy()
        if self.first_pass:
            return rollouts.logps_BT
        logps_BT = self.logps(self.policy, rollouts.rows)
        self.accumulate({"rollout/logp_error": sampler_error(rollouts.logps_BT, logps_BT, strict=False)})
        return logps_BT

    def check_first_pass(self, recorded_BT: Tensor, own_BT: Tensor) -> None:
        """Checks, before the first optimizer step, that the policy reproduces the recorded log-probabilities."""
        if self.first_pass:
            error = sampler_error(recorded_BT, own_BT.detach(), strict=not self.dropout)
            self.accumulate({"rollout/logp_error": error})

    def importance_weights(self, rollouts: Rollouts, old_logps_BT: Tensor) -> Tensor | None:
        """π_old/π_sampler of each token, truncated or masked, [B, T]; None if the engine samples from the policy, or
        `rollout_importance_sampling_mode` is null. Logs their statistics."""
        if self.samples_from_policy():
            return None
        mode, mask_BT = self.rollout_importance_sampling_mode, completion_mask(rollouts.rows, self.device)
        ratio_BT = sampling_ratio(old_logps_BT, rollouts.logps_BT, mask_BT, mode or "token_truncate")
        weights_BT = ratio_BT
        if mode is not None:
            bounds = self.rollout_importance_sampling_clip_min, self.rollout_importance_sampling_clip_max
            weights_BT = importance_weights(ratio_BT, mode, clip_min=bounds[0], clip_max=bounds[1]) * mask_BT
        tokens = mask_BT.sum()
        self.accumulate(
            {
                "rollout/is_mean": Mean(ratio_BT.sum(), tokens),
                "rollout/is_max": Max(ratio_BT.max()),
                "rollout/is_clipped": Mean((weights_BT != ratio_BT).sum(), tokens),
                "_is_weight": Mean(weights_BT.sum(), tokens),
                "_is_weight_squared": Mean((weights_BT**2).sum(), tokens),
            }
        )
        return None if mode is None else weights_BT

    def derived(self, metrics: dict[str, float]) -> dict[str, float]:
        if "_is_weight" not in metrics:
            return super().derived(metrics)
        # (Σ w)² / (N Σ w²), at most 1 up to rounding
        effective = metrics["_is_weight"] ** 2 / max(metrics["_is_weight_squared"], torch.finfo(torch.float32).tiny)
        return {**super().derived(metrics), "rollout/is_eff_sample_size": min(1.0, effective)}


def sampler_error(recorded_BT: Tensor, own_BT: Tensor, *, strict: bool) -> Max:
    """Largest difference between recorded and recomputed log-probabilities; both are 0 outside the mask.

    With `strict` (all float32), raises ConfigError if it exceeds rounding: the first importance ratio would not be 1.
    """
    error = float((recorded_BT - own_BT).abs().max())
    if strict and error > SAMPLER_TOLERANCE:
        raise ConfigError(
            f"rollout: sampled log-probabilities differ by {error:.2g} from the policy's own in float32, expected 0 up "
            "to rounding: the engine and the model do not compute the same; report it with the model's name"
        )
    return Max(error)
