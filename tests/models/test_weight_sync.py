"""Weight sync to another engine: plain names, adapters merged, the policy unchanged."""

import copy
from typing import Any

import pytest
import torch

from postrain.config.tree import instantiate
from postrain.errors import ConfigError
from postrain.models.weight_sync import check_transferable, fingerprint, merged_weights
from tests.tiny import SHAPES, tiny_model
from tests.training_runs import composed


def adapted(architecture: str, **changes: Any) -> Any:
    """A tiny model with a LoRA that changes its outputs."""
    config = composed(["method=sft", "adapter=lora"])["adapter"] | {"r": 2} | changes
    policy = instantiate(config).wrap(tiny_model(architecture), head="causal")
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1)
    return policy


@pytest.mark.parametrize("architecture", SHAPES)
@pytest.mark.parametrize("changes", [{}, {"dora": True}], ids=["lora", "dora"])
def test_adapter_is_merged_and_the_policy_stays_bit_identical(architecture, changes):
    policy = adapted(architecture, **changes)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    found = dict(merged_weights(policy))
    expected = dict(copy.deepcopy(policy).merge_and_unload().named_parameters(remove_duplicate=False))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=1e-6), name
    after = policy.state_dict()
    assert all(value.equal(after[name]) for name, value in before.items())
    ids = torch.arange(1, 9)[None]
    plain = tiny_model(architecture)
    plain.load_state_dict(found, strict=False)
    assert torch.allclose(plain(ids).logits, policy(ids).logits, atol=1e-5)


def test_without_an_adapter_the_weights_are_unchanged():
    model = tiny_model("qwen3")
    found = dict(merged_weights(model))
    assert found.keys() == dict(model.named_parameters(remove_duplicate=False)).keys()
    assert all(value.equal(model.state_dict()[name]) for name, value in found.items())


def test_fused_optimizer_step_changes_the_fingerprint():
    """The fused AdamW does not increment autograd's version counters."""
    policy = adapted("llama")
    learns = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learns, lr=1e-5, fused=True)
    before = fingerprint(policy)
    assert fingerprint(policy) == before
    policy(torch.arange(1, 9)[None]).logits.sum().backward()
    assert fingerprint(policy) == before
    optimizer.step()
    assert fingerprint(policy) != before


def test_merging_keeps_the_fingerprint():
    policy = adapted("gpt2")
    before = fingerprint(policy)
    list(merged_weights(policy))
    assert fingerprint(policy) == before


def test_fingerprint_detects_a_sign_flip_in_every_dtype():
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        model = tiny_model("llama").to(dtype)
        before = fingerprint(model)
        with torch.no_grad():
            model.lm_head.weight[0, 0] *= -1
        assert fingerprint(model) != before


def test_four_bit_weights_are_refused():
    weight = torch.zeros(2)
    weight.quant_state = object()  # pyright: ignore[reportAttributeAccessIssue] - as bitsandbytes marks its own
    with pytest.raises(ConfigError, match="adapter=qlora"):
        check_transferable("model.weight", weight)
