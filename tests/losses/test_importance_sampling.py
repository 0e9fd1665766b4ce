"""Importance weights of completions that another distribution sampled: worked numbers."""

import math
from typing import Any

import pytest
import torch

from postrain import losses
from postrain.losses.importance_sampling import weighted_gradient

# Two completions of 3 and 1 tokens with ratios 2, 1/2, 8 and 1/4; padding counts nowhere.
RATIOS = torch.tensor([[2.0, 0.5, 8.0], [0.25, 7.0, 7.0]])
MASK = torch.tensor([[True, True, True], [True, False, False]])
OLD, SAMPLER = torch.zeros(2, 3), -RATIOS.log()


@pytest.mark.parametrize(
    ("mode", "bounds", "expected"),
    [
        ("token_truncate", {}, [[2, 0.5, 3], [0.25, 0, 0]]),
        ("token_mask", {}, [[2, 0.5, 0], [0.25, 0, 0]]),
        # IcePop keeps ratios inside both bounds.
        ("token_mask", {"clip_min": 0.5, "clip_max": 5.0}, [[2, 0.5, 0], [0, 0, 0]]),
        # The product 2 · 1/2 · 8 = 8.
        ("sequence_truncate", {}, [[3, 3, 3], [0.25, 0, 0]]),
        ("sequence_mask", {}, [[0, 0, 0], [0.25, 0, 0]]),
        ("sequence_mask", {"clip_max": 9.0, "clip_min": 0.5}, [[8, 8, 8], [0, 0, 0]]),
        # The cube root of 8.
        ("geometric_mask", {"clip_min": 0.5}, [[2, 2, 2], [0, 0, 0]]),
    ],
)
def test_weights_of_worked_ratios_for_each_mode(mode: Any, bounds: Any, expected: Any) -> None:
    ratio_BT = losses.sampling_ratio(OLD, SAMPLER, MASK, mode)
    found = losses.importance_weights(ratio_BT, mode, **bounds)
    assert found.tolist() == [pytest.approx(row, rel=1e-6) for row in expected]


def test_ratio_of_a_long_completion_stays_finite() -> None:
    ratio_BT = losses.sampling_ratio(torch.zeros(1, 500), torch.full((1, 500), -1.0), torch.ones(1, 500).bool(),
                                     "sequence_truncate")  # fmt: skip
    assert float(ratio_BT.max()) == pytest.approx(math.exp(20))


def test_bounds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValueError, match="clip_min=4 is above clip_max=3"):
        losses.importance_weights(RATIOS, clip_min=4.0)


LOSSES: list[tuple[Any, dict[str, Any]]] = [
    (losses.grpo, {}),
    (losses.grpo, {"loss": "cispo"}),
    (losses.reinforce, {}),
    (losses.ppo, {}),
    (losses.nash_md, {}),
    # One ratio for the whole completion: each of its tokens has a weight of its own.
    (losses.grpo, {"loss": "gspo", "clip_low": 0.5, "clip_high": 0.5}),
    (losses.rloo, {}),
]


@pytest.mark.parametrize(("loss", "options"), LOSSES)
def test_weights_multiply_the_gradient_of_each_token_and_leave_the_value(loss: Any, options: Any) -> None:
    weights_BT, advantages = torch.tensor([[2.0, 0.5, 0.0], [0.25, 0, 0]]), torch.ones(2, 3)
    logps = torch.full((2, 3), -0.1, requires_grad=True)
    plain = loss(logps, OLD, advantages, MASK, **options)
    weighted = loss(logps, OLD, advantages, MASK, importance_weights=weights_BT, **options)
    assert torch.equal(plain, weighted)
    before, after = (torch.autograd.grad(value, logps)[0] for value in (plain, weighted))
    assert torch.allclose(after, before * weights_BT)
    assert before[MASK].all()


def test_weighted_gradient_leaves_values_bit_for_bit() -> None:
    values = torch.randn(100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(weighted_gradient(values, torch.rand(100) * 9), values)
