"""What PPO leaves out of a step, and its critic's metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from postrain.methods.ppo import critic_metrics
from tests.methods.builders import ScriptedEngine, float64_model, make_method
from tests.methods.test_rollouts import NAN, FirstTokenReward, NumberTemplate, logged, prompts


def ppo(completions: Sequence[Sequence[int]], values: Mapping[str, float], **changes: Any) -> Any:
    """PPO over as many prompts as there are completions, one mini-batch; its critic has learned something."""
    components = {
        "engine": ScriptedEngine(completions),
        "template": NumberTemplate(),
        "reward": FirstTokenReward(values),
    }
    settings = {"batch_size": len(completions), "minibatches_per_epoch": 1, "value_clip": 9.0, **changes}
    torch.manual_seed(0)
    found = make_method("ppo", float64_model(), reference=float64_model(1), components=components, **settings).double()
    with torch.no_grad():
        for parameter in found.value_head.parameters():
            parameter.normal_(0, 0.3)
    found.accumulated = {}
    return found


def ppo_step(found: Any, count: int) -> torch.Tensor:
    """The gradient of policy and critic."""
    minibatch = next(found.minibatches(found.prepare(prompts(count))))
    total = found.loss_sum(minibatch).total / found.denominator(minibatch)
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(total, list(found.parameters()))])


KNOWN, VALUES = [[1, 7, 0], [2, 0]], {"1": 1.0, "2": 0.0, "3": NAN}


@pytest.mark.parametrize(
    ("left_out", "changes"),
    [
        ([3, 8, 8, 0], {}),
        ([3, 0], {"kl_in": "loss", "kl_estimator": "exact", "entropy_coef": 0.1}),
        ([1, 9, 9], {"mask_truncated_completions": True}),
    ],
)
def test_ppo_skips_unscorable_and_masked_episodes(left_out, changes):
    """An unscorable (or, where asked, truncated) episode has no advantage, no value target, no place in whitening and
    counts."""
    without, among = ppo(KNOWN, VALUES, **changes), ppo([*KNOWN, left_out], VALUES, **changes)
    assert torch.allclose(ppo_step(among, 3), ppo_step(without, 2), atol=1e-12)
    for name in ("advantage/mean_abs", "value/explained_variance"):
        assert logged(among, name) == pytest.approx(logged(without, name))
    prepared = among.prepare(prompts(3))
    assert prepared.learned_B.tolist() == [True, True, False]
    assert not prepared.advantages_BT[2].any()


def test_ppo_with_nothing_scorable_has_no_minibatch_items():
    found = ppo([[3, 0], [3, 1, 0]], VALUES)
    prepared = found.prepare(prompts(2))
    minibatch = next(found.minibatches(prepared))
    assert (len(minibatch), found.denominator(minibatch)) == (0, 0)
    assert not prepared.advantages_BT.isnan().any()
    assert logged(found, "value/explained_variance") == 0


def test_explained_variance_is_exact_for_large_returns():
    # Returns offset ± 1, errors ± 0.5: 1 - 0.25 / 1.
    for offset in (0.0, 1_000.0, 100_000.0):
        returns_BT = offset + torch.tensor([[1.0, -1.0]])
        values_BT = offset + torch.tensor([[0.5, -0.5]])
        found = critic_metrics(values_BT, returns_BT, returns_BT - values_BT, torch.ones(1, 2, dtype=torch.bool))
        assert found["value/explained_variance"].value() == pytest.approx(0.75)
