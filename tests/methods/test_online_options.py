"""Every key of the online methods changes the gradient of an update; a key without a case fails."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from postrain.config.schema import schema_of
from postrain.methods.base import Method
from postrain.rollout.engine import Mixture
from tests.methods.builders import ScriptedEngine, defaults, flat_gradient, make_method
from tests.methods.test_rollouts import FirstTokenReward, NumberTemplate, prompts
from tests.tiny import tiny_model

Change = tuple[dict[str, Any], dict[str, Any]]
"""The changed settings, and the settings under which they have an effect."""

# Keys of the training loop, common to all methods: tests/methods/test_dpo_options.py tests them.
COMMON = {"_target_", *schema_of(Method).keys}
TRUNCATED: list[Change] = [
    ({"missing_eos_penalty": 0.7}, {}),
    ({"mask_truncated_completions": True}, {"missing_eos_penalty": 0.7}),
]
OTHER_SAMPLER = {"rollout_importance_sampling_mode": "token_truncate"}
CORRECTED: list[Change] = [
    ({"rollout_importance_sampling_mode": "sequence_mask"}, OTHER_SAMPLER),
    ({"rollout_importance_sampling_clip_max": 1.0}, OTHER_SAMPLER),
    ({"rollout_importance_sampling_clip_min": 1.0}, OTHER_SAMPLER),
]
GROUPED: list[Change] = [
    *CORRECTED,
    ({"group_size": 4}, {}),
    ({"clip_low": 0.99}, {}),
    ({"clip_high": 9.0}, {}),
    ({"kl_coef": 0.3}, {}),
    # Without the correction, RLOO and REINFORCE++ refuse k3 in the loss.
    ({"use_bias_correction_kl": True, "kl_estimator": "k3"}, {"kl_coef": 0.3, "kl_in": "loss", "kl_estimator": "k2"}),
    ({"kl_estimator": "exact"}, {"kl_coef": 0.3, "kl_in": "loss", "kl_estimator": "k2"}),
    ({"kl_in": "reward", "kl_estimator": "k1"}, {"kl_coef": 0.3, "kl_in": "loss", "kl_estimator": "k2"}),
    ({"entropy_coef": 0.3}, {}),
    *TRUNCATED,
    ({"dynamic_sampling": 1}, {}),
    ({"epochs": 2}, {}),
    ({"minibatches_per_epoch": 2}, {}),
]
CHANGES: dict[str, list[Change]] = {
    "grpo": [
        *GROUPED,
        ({"scale_rewards": "batch"}, {}),
        ({"scale_rewards": "none"}, {}),
        *(({"loss_type": name}, {}) for name in ("bnpo", "dr_grpo")),
        # With one mini-batch bnpo and dapo are equal.
        ({"loss_type": "dapo"}, {"loss_type": "bnpo", "minibatches_per_epoch": 2}),
        *(({"loss": name}, {}) for name in ("gspo", "cispo", "gmpo", "sapo", "clip_cov")),
        ({"loss": "kl_cov"}, {"epochs": 2}),
        ({"loss_options": {"delta": 1.01}}, {"clip_high": 0.005}),
        ({"loss_options": {"kl_cov_ratio": 1.0}}, {"loss": "kl_cov", "epochs": 2}),
        *(({"advantage": name}, {}) for name in ("leave_one_out", "opo", "maxrl", "w_reinforce")),
        ({"advantage_options": {"positive": 0.0}}, {"advantage": "w_reinforce"}),
        ({"top_entropy_quantile": 0.2}, {}),
        ({"overlong_buffer": 16}, {}),
        ({"overlong_penalty": 0.3}, {"overlong_buffer": 16}),
    ],
    "rloo": GROUPED,
    "reinforce": GROUPED,
    "online_dpo": [
        *TRUNCATED,
        ({"group_size": 4}, {}),
        ({"beta": 0.37}, {}),
        ({"loss": "ipo"}, {}),
        ({"xpo_alpha": 0.3}, {"group_size": 2}),
        ({"epochs": 2}, {}),
        ({"minibatches_per_epoch": 2}, {}),
    ],
    "nash_md": [
        *CORRECTED,
        *TRUNCATED,
        ({"group_size": 4}, {}),
        ({"beta": 0.37}, {}),
        ({"preference_temperature": 1.3}, {}),
        ({"epochs": 2}, {}),
        ({"minibatches_per_epoch": 2}, {}),
        ({"mixture_coef": 0.9}, {}),
    ],
}
# Online DPO ranks completions, so the temperature changes its metrics but not its gradient.
# The entropy controller changes the update after the first one: tests/methods/test_entropy_control.py.
# Turns and parts of a reward: tests/methods/test_group_relative.py. Curricula: tests/methods/test_curriculum.py.
CONTROL = {"entropy_target", "entropy_coef_delta", "turn_level_advantages", "curriculum"}
ELSEWHERE = {
    "online_dpo": {"preference_temperature"},
    "rloo": CONTROL,
    "reinforce": CONTROL,
    "grpo": {*CONTROL, "multi_objective_aggregation"},
}
CASES = [(method, changed, beside) for method, cases in CHANGES.items() for changed, beside in cases]


class MixtureEngine(ScriptedEngine):
    """Shifts the scripted completions by ten times the mixture coefficient, so that the gradient depends on it."""

    def generate(self, model: Any, prompts: Any, *, seeds: Any, stop: Any) -> list:
        if isinstance(model, Mixture):
            self.calls += round(10 * model.coef)
        found = super().generate(model, prompts, seeds=seeds, stop=stop)
        if self.exact_logps:
            return found
        source = torch.Generator().manual_seed(6)
        return [replace(one, logps=one.logps + 0.3 * torch.randn(len(one.ids), generator=source)) for one in found]


COMPLETIONS = [[2, 7, 0], [2, 3, 0], [2, 4], [1, 4, 9, 0], [3, 8, 0], [1, 5], [4, 0], [2, 2, 2, 2, 0]]
VALUES = {"1": 0.0, "2": 1.0, "3": 0.4, "4": 0.1}


def update_gradients(method: str, **settings: Any) -> torch.Tensor:
    """The gradients of all mini-batches of one update, with different policy, sampler and reference."""
    components = {
        "engine": MixtureEngine(COMPLETIONS, exact_logps=OTHER_SAMPLER.keys().isdisjoint(settings)),
        "template": NumberTemplate(),
        "reward": FirstTokenReward(VALUES),
    }
    policy = tiny_model()
    off = {"dynamic_sampling": 0} if "dynamic_sampling" in defaults(method) else {}
    settings = {"batch_size": 2, "group_size": 3, **off, **settings}
    learner = make_method(method, policy, reference=tiny_model(seed=1), components=components, **settings)
    learner.accumulated = {}
    prepared = learner.prepare(prompts(learner.items_per_update()))
    if hasattr(prepared, "logps_BT"):
        # Ratios beyond both clips, for positive and negative advantages.
        moved_BT = 0.3 * torch.randn(prepared.logps_BT.shape, generator=torch.Generator().manual_seed(8))
        prepared = replace(prepared, logps_BT=prepared.logps_BT - moved_BT)
    gradients = []
    for minibatch in learner.minibatches(prepared):
        learner.first_pass = False
        used = minibatch.select([item for item, cost in enumerate(minibatch.cost()) if cost])
        if len(used):
            total = learner.loss_sum(used).total / learner.denominator(minibatch)
            gradients.append(flat_gradient(policy, total))
    return torch.cat(gradients)


@pytest.mark.parametrize(("method", "changed", "beside"), CASES)
def test_each_key_changes_the_update(method, changed, beside):
    before, after = update_gradients(method, **beside), update_gradients(method, **{**beside, **changed})
    assert before.shape != after.shape or not torch.allclose(before, after, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("method", CHANGES)
def test_every_key_has_a_case(method):
    tried = {key for changed, _ in CHANGES[method] for key in changed}
    assert set(defaults(method)) - COMMON == tried | ELSEWHERE.get(method, set())
