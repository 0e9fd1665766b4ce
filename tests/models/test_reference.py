"""The reference model keeps the initial weights of the policy during training."""

import weakref
from typing import Any

import pytest
import torch
from torch import nn

from postrain.models.parts import ValueHead, frozen_copy
from postrain.models.reference import Reference
from tests.models.conftest import tiny_model
from tests.models.test_adapters import logits, lora, moved


def policy(adapted: bool) -> nn.Module:
    model = tiny_model("gpt2")
    return lora(dropout=0.5).wrap(model, head="causal") if adapted else model


both = pytest.mark.parametrize("adapted", [True, False])


@both
def test_reference_keeps_the_initial_policy(adapted: bool) -> None:
    learner = policy(adapted)
    start = logits(learner)
    reference = Reference.for_policy(learner)
    moved(learner)
    after = logits(learner)
    with reference.scoring() as model:
        assert torch.equal(logits(model), start)
    assert torch.equal(logits(learner), after)
    assert not torch.allclose(after, start)


@both
def test_scoring_uses_eval_mode_without_gradients_and_restores_the_policy(adapted: bool) -> None:
    learner = policy(adapted).train()
    frozen_part: Any = next(module for module in learner.modules() if isinstance(module, nn.LayerNorm))
    frozen_part.eval()
    trainable = {name for name, parameter in learner.named_parameters() if parameter.requires_grad}
    with Reference.for_policy(learner).scoring() as model:
        assert not any(module.training for module in model.modules())
        assert not model(input_ids=torch.tensor([[1, 2]])).logits.requires_grad
    assert learner.training
    assert not frozen_part.training
    assert {name for name, parameter in learner.named_parameters() if parameter.requires_grad} == trainable
    assert learner(input_ids=torch.tensor([[1, 2]])).logits.requires_grad


def test_frozen_model_in_training_mode_scores_without_dropout() -> None:
    frozen = policy(True).train()
    with Reference.for_policy(policy(False), frozen).scoring() as model:
        assert not any(module.training for module in model.modules())
    assert frozen.training


def test_reference_pass_between_forward_and_backward_keeps_the_gradient() -> None:
    learner = moved(policy(True))
    reference = Reference.for_policy(learner)

    def gradient(interrupted: bool) -> torch.Tensor:
        learner.zero_grad()
        loss = learner(input_ids=torch.tensor([[1, 2, 3]])).logits.square().mean()
        if interrupted:
            with reference.scoring() as model:
                logits(model)
        loss.backward()
        return torch.cat([p.grad.flatten() for p in learner.parameters() if p.grad is not None])

    assert torch.equal(gradient(True), gradient(False))


def test_reference_is_not_a_submodule() -> None:
    holder = nn.Module()
    holder.reference = Reference.for_policy(policy(False))  # pyright: ignore[reportArgumentType]
    assert list(holder.parameters()) == []
    assert holder.state_dict() == {}


def test_given_model_is_the_reference_and_the_description_names_the_kind() -> None:
    other = tiny_model("gpt2", seed=5)
    with Reference.for_policy(policy(True), other).scoring() as model:
        assert model is other
    assert Reference.for_policy(policy(True)).description == "reference: the policy with its adapter disabled"
    assert "frozen" in Reference.for_policy(policy(False)).description


def test_loaded_model_is_shared_by_nested_blocks_and_released_after_the_outermost() -> None:
    loaded: list[Any] = []

    def load() -> nn.Module:
        model = tiny_model("gpt2", seed=5).train()
        loaded.append(weakref.ref(model))
        return model

    learner = policy(True)
    reference = Reference(learner, load=load)
    for _ in range(2):
        with reference.scoring() as model:
            assert not model.training
            assert not any(parameter.requires_grad for parameter in model.parameters())
            with reference.scoring() as again:
                assert again is model
            assert loaded[-1]() is model
            del model, again
    assert [one() for one in loaded] == [None, None]


def test_reduced_precision_halves_the_reference_and_leaves_the_policy():
    policy = tiny_model("llama")
    reference = Reference.for_policy(policy)
    assert not reference.is_rounded
    reference.convert(lambda model: model.to(torch.bfloat16))
    assert reference.is_rounded
    with reference.scoring() as frozen:
        assert {p.dtype for p in frozen.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    loaded = Reference(policy, load=lambda: tiny_model("llama"))
    loaded.convert(lambda model: model.to(torch.bfloat16))
    with loaded.scoring() as frozen:
        assert next(frozen.parameters()).dtype == torch.bfloat16
    adapted = Reference(policy)
    adapted.convert(lambda model: model.to(torch.bfloat16))
    assert not adapted.is_rounded


def test_frozen_copy_shares_no_weights() -> None:
    model = tiny_model("llama").train()
    copied = frozen_copy(model)
    moved(model)
    assert not copied.training
    assert not any(parameter.requires_grad for parameter in copied.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not torch.equal(model.lm_head.weight, copied.lm_head.weight)


def test_value_head_starts_at_zero_and_returns_float32() -> None:
    head = ValueHead(4)
    states_BTD = torch.randn(2, 3, 4)
    assert torch.equal(head(states_BTD), torch.zeros(2, 3, 1))
    head.output.weight.data = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    # 1·1 + 2·1 + 3·1 + 4·1 = 10
    assert head(torch.ones(4)).item() == 10.0
    assert head.to(torch.bfloat16)(states_BTD.to(torch.bfloat16)).dtype == torch.float32
