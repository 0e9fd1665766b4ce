"""PPO: unscorable and masked episodes, and the explained variance of the critic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from postrain.methods.ppo import critic_metrics
from tests.methods.builders import ScriptedEngine, float64_model, make_method
from tests.methods.test_rollouts import NAN, FirstTokenReward, NumberTemplate, logged, prompts


def ppo(completions: Sequence[Sequence[int]], values: Mapping[str, float], **changes: Any) -> Any:
    """PPO with one prompt per completion, one mini-batch and a critic whose values are not 0."""
    components = {
        "engine": ScriptedEngine(completions),
        "template": NumberTemplate(),
        "reward": FirstTokenReward(values),
    }
    settings = {"batch_size": len(completions), "minibatches_per_epoch": 1, "value_clip": 9.0, **changes}
    torch.manual_seed(0)
    method = make_method("ppo", float64_model(), reference=float64_model(1), components=components, **settings).double()
    with torch.no_grad():
        for parameter in method.value_head.parameters():
            parameter.normal_(0, 0.3)
    method.accumulated = {}
    return method


def update_gradient(method: Any, count: int) -> torch.Tensor:
    """The gradient of policy and critic for one update."""
    minibatch = next(method.minibatches(method.prepare(prompts(count))))
    total = method.loss_sum(minibatch).total / method.denominator(minibatch)
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(total, list(method.parameters()))])


SCORED, VALUES = [[1, 7, 0], [2, 0]], {"1": 1.0, "2": 0.0, "3": NAN}


@pytest.mark.parametrize(
    ("left_out", "changes"),
    [
        ([3, 8, 8, 0], {}),
        ([3, 0], {"kl_in": "loss", "kl_estimator": "exact", "entropy_coef": 0.1}),
        ([1, 9, 9], {"mask_truncated_completions": True}),
    ],
)
def test_unscorable_and_masked_episodes_have_no_effect_on_the_update(left_out, changes):
    """An unscorable (or, with masking, truncated) episode has no advantage and no value target, and is excluded from
    whitening and counts."""
    without, among = ppo(SCORED, VALUES, **changes), ppo([*SCORED, left_out], VALUES, **changes)
    assert torch.allclose(update_gradient(among, 3), update_gradient(without, 2), atol=1e-12)
    for name in ("advantage/mean_abs", "value/explained_variance"):
        assert logged(among, name) == pytest.approx(logged(without, name))
    prepared = among.prepare(prompts(3))
    assert prepared.in_loss_B.tolist() == [True, True, False]
    assert not prepared.advantages_BT[2].any()


def test_batch_without_scorable_episodes_has_empty_minibatches():
    method = ppo([[3, 0], [3, 1, 0]], VALUES)
    prepared = method.prepare(prompts(2))
    minibatch = next(method.minibatches(prepared))
    assert (len(minibatch), method.denominator(minibatch)) == (0, 0)
    assert not prepared.advantages_BT.isnan().any()
    assert logged(method, "value/explained_variance") == 0


def test_explained_variance_is_exact_for_large_returns():
    # Returns of offset ± 1 and errors of ± 0.5: 1 - 0.25 / 1.
    for offset in (0.0, 1_000.0, 100_000.0):
        returns_BT = offset + torch.tensor([[1.0, -1.0]])
        values_BT = offset + torch.tensor([[0.5, -0.5]])
        metrics = critic_metrics(values_BT, returns_BT, returns_BT - values_BT, torch.ones(1, 2, dtype=torch.bool))
        assert metrics["value/explained_variance"].value() == pytest.approx(0.75)
