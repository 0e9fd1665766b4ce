"""linear_logps equals log_softmax of the whole logits, with the gradients of states, weight and entropy."""

import pytest
import torch
from torch import nn

from postrain.models.linear_logps import linear_logps, plain_head
from tests.tiny import tiny_model

N, D, V = 7, 5, 11


def by_autograd(states, head, targets, temperature):
    logps_NV = (
        (head(states).float() if states.dtype != torch.float64 else head(states)).div(temperature).log_softmax(-1)
    )
    return logps_NV.gather(-1, targets[:, None]).squeeze(-1), -(logps_NV.exp() * logps_NV).sum(-1)


def inputs(dtype=torch.float64):
    torch.manual_seed(0)
    states, head = torch.randn(N, D, dtype=dtype, requires_grad=True), nn.Linear(D, V, bias=False, dtype=dtype)
    return states, head, torch.randint(V, (N,)), torch.randn(2, N, dtype=dtype)


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("uses_entropy", [False, True])
def test_values_and_gradients_equal_autograd(size, temperature, uses_entropy):
    states, head, targets, weights = inputs()
    mine = linear_logps(states, head, targets, size=size, temperature=temperature, entropy=True)
    theirs = by_autograd(states, head, targets, temperature)
    gradients = []
    for logps, entropy in (mine, theirs):
        total = (weights[0] * logps).sum() + uses_entropy * (weights[1] * entropy).sum()
        gradients.append(torch.autograd.grad(total, (states, head.weight)))
    for one, other in zip((*mine, *gradients[0]), (*theirs, *gradients[1]), strict=True):
        assert torch.allclose(one, other, atol=1e-12)


def test_a_frozen_head_gets_no_gradient():
    states, head, targets, weights = inputs()
    head.requires_grad_(False)
    logps, _ = linear_logps(states, head, targets, size=3)
    expected = by_autograd(states, head, targets, 1.0)[0]
    one, other = (torch.autograd.grad((weights[0] * each).sum(), states)[0] for each in (logps, expected))
    assert torch.allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("weights_in_bf16", [False, True])
def test_bf16_products_are_those_of_autocast(weights_in_bf16):
    states, head, targets, weights = inputs(torch.float32)
    if weights_in_bf16:
        states, head = states.detach().bfloat16().requires_grad_(), head.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        mine = linear_logps(states, head, targets, size=3)[0]
        theirs = by_autograd(states, head, targets, 1.0)[0]
    assert mine.dtype == torch.float32
    assert torch.allclose(mine, theirs, atol=1e-6)
    gradients = [torch.autograd.grad((weights[0] * logps).sum(), (states, head.weight)) for logps in (mine, theirs)]
    for one, other in zip(*gradients, strict=True):
        assert one.dtype == other.dtype
        # autocast sums the weight's gradient over all positions at once, and rounds it to bf16
        assert torch.allclose(one.float(), other.float(), atol=2e-2)


def test_only_a_product_without_bias_is_a_plain_head():
    model = tiny_model()
    assert plain_head(model) is model.get_output_embeddings()
    model.config.final_logit_softcapping = 30.0
    assert plain_head(model) is None
    del model.config.final_logit_softcapping
    model.config.logits_scaling = 2.0
    assert plain_head(model) is None
