"""Histograms of ratios and advantages."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import torch

from postrain.methods.online import Online


def test_distributions_hold_the_real_tokens_of_the_last_micro_batch():
    method = cast("Any", SimpleNamespace(last_step_BT=None))
    assert Online.distributions(method) == {}
    advantages_BT = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    mask_BT = torch.tensor([[True, True], [True, False]])
    # A sequence-level ratio, [B, 1], is repeated for each token.
    Online.record_step(method, torch.tensor([[0.5], [1.5]], requires_grad=True), advantages_BT, mask_BT)
    found = Online.distributions(method)
    assert found["ratio"].tolist() == [0.5, 0.5, 1.5]
    assert found["advantage"].tolist() == [1.0, 2.0, 3.0]
    assert not found["ratio"].requires_grad
