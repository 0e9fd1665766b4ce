"""Gradient checkpointing saves activations and changes no number."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from postrain.errors import ConfigError
from postrain.models.gradient_checkpointing import checkpoints, gradient_checkpointing
from postrain.models.packing import hidden_states, supports_packing
from postrain.models.reference import Reference
from postrain.models.scoring import score_with_reference
from postrain.types import Rows
from tests.methods.builders import make_method
from tests.models.test_adapters import lora
from tests.models.test_packing import prompt_groups
from tests.tiny import tiny_model

ROWS = prompt_groups(3)
BATCH = Rows(ROWS, tuple(torch.arange(len(row)) > 0 for row in ROWS), tuple(range(len(ROWS))))


def policy(architecture: str, *, adapted: bool = False) -> Any:
    model = tiny_model(architecture)
    return lora(dropout=0.5).wrap(model, head="causal") if adapted else model


def gradient(model: nn.Module, *, enabled: bool) -> tuple[Tensor, Tensor, int]:
    """Loss, gradient and number of elements kept for the backward pass."""
    kept = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    model.zero_grad()
    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with gradient_checkpointing(model, enabled=enabled):
            found = score_with_reference(model, Reference.for_policy(model), BATCH)
        loss = (found.kl_BT - found.logps_BT).sum()
        loss.backward()
    return loss, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), kept


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma3"])
def test_gradients_of_packed_rows_are_bit_identical(architecture: str, adapted: bool) -> None:
    model = policy(architecture, adapted=adapted)
    for training in (False, True) if adapted else (False,):
        model.train(training)
        plain_loss, plain, all_kept = gradient(model, enabled=False)
        loss, found, kept = gradient(model, enabled=True)
        assert torch.equal(loss, plain_loss)
        assert torch.equal(found, plain)
        assert kept < 0.7 * all_kept


def test_dropout_masks_are_the_same_in_the_recomputation() -> None:
    model = policy("gpt2").train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    _, plain, _ = gradient(model, enabled=False)
    _, found, _ = gradient(model, enabled=True)
    assert torch.equal(found, plain)
    _, other, _ = gradient(model.eval(), enabled=False)
    assert not torch.allclose(other, plain)


def test_layers_are_restored_and_run_once_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    model = policy("llama")
    assert supports_packing(model)
    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    hooked = layers[0].forward
    monkeypatch.setitem(vars(layers[0]), "forward", hooked)
    calls = []
    layers[1].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    with gradient_checkpointing(model):
        assert all(layer.forward is not hooked for layer in layers)
        with torch.no_grad():
            hidden_states(model, ROWS)
        assert len(calls) == 1
        states, _ = hidden_states(model, ROWS)
    states.sum().backward()
    assert len(calls) == 3
    assert vars(layers[0])["forward"] is hooked
    assert "forward" not in vars(layers[1])


def test_switch_of_transformers_becomes_the_setting() -> None:
    model = tiny_model()
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = True
    assert checkpoints(model, requested=False)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    assert not checkpoints(model, requested=False)
    assert make_method("sft", tiny_model(), gradient_checkpointing=True).gradient_checkpointing


@pytest.mark.parametrize("enabled", [True, False])
def test_layers_of_a_separate_critic_are_checkpointed_too(enabled: bool) -> None:
    method: Any = make_method("ppo", tiny_model(), critic="separate", gradient_checkpointing=enabled)
    layers = [layer for layer in method.modules() if isinstance(layer, GradientCheckpointingLayer)]
    assert len(layers) == 2 * 2
    with method.checkpointed_layers():
        assert all(("forward" in vars(layer)) is enabled for layer in layers)
    assert not any("forward" in vars(layer) for layer in layers)


def test_model_without_checkpointable_layers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("postrain.models.gradient_checkpointing.GradientCheckpointingLayer", nn.Bilinear)
    with pytest.raises(ConfigError, match=r"^method\.gradient_checkpointing: .* GPT2LMHeadModel; set it to false"):
        make_method("sft", tiny_model(), gradient_checkpointing=True)
