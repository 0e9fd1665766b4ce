"""Sharded models in a group of one rank: what is sharded, when blocks are gathered, and equal gradients."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from postrain.hardware.sharding import blocks_freed, full_state_dict, load_state, shard, transformer_blocks
from postrain.models.scoring import score
from postrain.models.weight_sync import describe_weights, fingerprint, merged_weights
from postrain.types import Rows
from tests.models.test_weight_sync import adapted
from tests.rollout.fake_vllm import Calls, fake_server
from tests.rollout.test_vllm_server import engine, sample
from tests.tiny import tiny_model

ROWS = Rows(
    ids=(torch.tensor([3, 5, 7, 9, 2]), torch.tensor([3, 5, 8, 1])),
    supervised=(torch.tensor([False, False, True, True, True]), torch.tensor([False, False, True, True])),
    row_ids=(0, 1),
)


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """The gradients of the mean log-probability of ROWS."""
    score(model, ROWS).logps_BT.mean().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {name: each.full_tensor() if isinstance(each, DTensor) else each for name, each in found.items()}


def is_sharded(module: nn.Module) -> set[bool]:
    return {isinstance(parameter, DTensor) for parameter in module.parameters()}


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma3"])
def test_gradients_equal_those_of_the_whole_model(architecture, mesh):
    whole, sharded = tiny_model(architecture), tiny_model(architecture)
    expected = gradients(whole)
    shard(sharded, mesh)
    assert is_sharded(sharded) == {True}
    with blocks_freed([sharded]):
        found = gradients(sharded)
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], expected[name], atol=1e-7) for name in expected)
    assert is_sharded(sharded) == {True}
    assert {name: value.shape for name, value in full_state_dict(sharded).items()} == {
        name: value.shape for name, value in whole.state_dict().items()
    }


def test_blocks_are_freed_only_where_gradients_are_computed(mesh):
    model = tiny_model("gpt2")
    shard(model, mesh)
    block, embedding = model.transformer.h[0], model.transformer.wte
    with torch.no_grad():
        score(model, ROWS)
    assert (is_sharded(block), is_sharded(embedding)) == ({False}, {False})
    with blocks_freed([model]):
        assert is_sharded(block) == {True}
        score(model, ROWS)
        assert (is_sharded(block), is_sharded(embedding)) == ({True}, {False})
    score(model, ROWS).logps_BT.sum().backward()
    assert is_sharded(model) == {True}


def test_weights_are_gathered_in_the_compute_dtype_and_trained_in_their_own(mesh):
    model = tiny_model("llama")
    expected = gradients(tiny_model("llama"))
    shard(model, mesh, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        score(model, ROWS).logps_BT.mean()
        assert {parameter.dtype for parameter in model.model.layers[0].parameters()} == {torch.bfloat16}
        found = gradients(model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    mine, theirs = (torch.cat([each.flatten() for each in of.values()]) for of in (found, expected))
    assert float((mine - theirs).norm() / theirs.norm()) < 0.05


def test_module_lists_inside_a_block_belong_to_it():
    experts = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    blocks = [nn.Sequential(nn.Linear(2, 2), nn.ModuleDict({"experts": experts})), nn.Linear(2, 2)]
    model = nn.ModuleDict({"embed": nn.Linear(2, 2), "layers": nn.ModuleList(blocks)})
    assert transformer_blocks(model) == blocks


@pytest.mark.parametrize("compute", [None, torch.bfloat16])
@pytest.mark.parametrize("make", [tiny_model, adapted, partial(adapted, dora=True)], ids=["whole", "lora", "dora"])
def test_transferred_weights_are_those_of_the_shards(make, compute, mesh):
    sharded = make("gpt2")
    expected = dict(merged_weights(make("gpt2")))
    shard(sharded, mesh, compute)
    optimizer = torch.optim.AdamW([each for each in sharded.parameters() if each.requires_grad], lr=1e-3)
    before = fingerprint(sharded)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=compute is not None)
    with torch.no_grad(), autocast:
        score(sharded, ROWS)  # gathers all weights, in the compute dtype
    assert is_sharded(sharded) == {False}
    found = dict(merged_weights(sharded))
    assert found.keys() == expected.keys()
    assert all(values.equal(expected[name]) for name, values in found.items())
    assert describe_weights(sharded) == [(name, each.dtype, tuple(each.shape)) for name, each in expected.items()]
    assert fingerprint(sharded) == before
    with autocast:
        score(sharded, ROWS).logps_BT.sum().backward()
    optimizer.step()
    assert fingerprint(sharded) != before


@pytest.mark.parametrize("enable_lora", [False, True])
def test_a_sharded_policy_is_sampled_on_a_server(enable_lora, mesh):
    policy = adapted("gpt2")
    shard(policy, mesh)
    calls = Calls()
    with fake_server(calls) as (url, _):
        vllm = engine(url, enable_lora=enable_lora)
        for _ in range(2):  # the check of the weights has gathered them
            assert len(sample(vllm, policy, rows=3)) == 3
    assert calls.events.count("weights") == 1
    assert len(calls.adapters) == enable_lora


@pytest.mark.parametrize("whole", [True, False])
def test_a_sharded_model_loads_whole_tensors_and_shards(whole, mesh):
    source, target = tiny_model("gpt2", seed=1), tiny_model("gpt2")
    expected = {name: value.clone() for name, value in source.state_dict().items()}
    shard(target, mesh)
    if not whole:
        shard(source, mesh)
    with torch.no_grad():
        score(target, ROWS)  # gathers all weights
    load_state(target, source.state_dict())
    assert is_sharded(target) == {True}
    assert all(value.equal(expected[name]) for name, value in full_state_dict(target).items())
