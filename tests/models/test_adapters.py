"""Adapters: trained and frozen weights, unchanged outputs at initialization, and seeded initial weights."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from postrain.errors import ConfigError
from postrain.models.adapters import LoRA, NoAdapter, QLoRA
from postrain.models.loading import use_differentiable_kernel
from tests.models.conftest import architectures, rows, tiny_model


def lora(**changes: Any) -> LoRA:
    """A LoRA of a size for tiny models."""
    return replace(
        LoRA(r=2, alpha=4.0, dropout=0.0, rslora=False, dora=False, target_modules=None),
        **changes,
    )


def moved(policy: nn.Module) -> nn.Module:
    """The policy with noise added to every trainable weight, as after training."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return policy


def logits(model: Any) -> torch.Tensor:
    """The logits of a fixed batch."""
    with torch.no_grad():
        return model(**rows("once", "upon")).logits


def test_no_adapter_returns_the_model_itself() -> None:
    model = tiny_model("gpt2")
    assert NoAdapter().wrap(model, head="causal") is model
    assert NoAdapter().quantization() is None


@architectures
def test_new_adapter_keeps_the_logits_and_adapts_every_linear_layer(
    architecture: str, recwarn: pytest.WarningsRecorder
) -> None:
    model = tiny_model(architecture)
    before = logits(model)
    policy = lora().wrap(model, head="causal")
    assert not policy.training
    assert torch.equal(logits(policy), before)
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name, p in policy.named_parameters() if p.requires_grad}
    gpt2 = {"c_attn", "c_proj", "c_fc"}
    others = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert adapted == (gpt2 if architecture == "gpt2" else others)
    assert not [warning for warning in recwarn if "fan_in" in str(warning.message)]


@pytest.mark.parametrize("changes", [{}, {"rslora": True}, {"dora": True}, {"dropout": 0.1}, {"r": 4}, {"alpha": 8.0}])
def test_merged_adapter_equals_unmerged(changes: dict[str, Any]) -> None:
    for architecture in ("gpt2", "llama"):
        policy: Any = moved(lora(**changes).wrap(tiny_model(architecture), head="causal"))
        unmerged = logits(policy)
        torch.testing.assert_close(logits(policy.merge_and_unload()), unmerged, rtol=1e-4, atol=1e-4)


def test_scale_is_alpha_over_r_and_with_rslora_alpha_over_root_r() -> None:
    def scale(adapter: LoRA) -> float:
        policy: Any = adapter.wrap(tiny_model("llama"), head="causal")
        return next(m.scaling["default"] for m in policy.modules() if hasattr(m, "lora_A"))

    assert scale(lora(r=4, alpha=8.0)) == 2.0  # 8 / 4
    assert scale(lora(r=4, alpha=8.0, rslora=True)) == 4.0  # 8 / √4


def test_initial_weights_depend_only_on_the_seed() -> None:
    def first(seed: int, draws: int) -> torch.Tensor:
        model = tiny_model("gpt2")
        torch.manual_seed(seed)
        torch.randn(draws)
        policy = lora().wrap(model, head="causal")
        return next(p for name, p in policy.named_parameters() if "lora_A" in name)

    assert torch.equal(first(1, 0), first(1, 5))
    assert not torch.equal(first(1, 0), first(2, 0))


def test_wrap_does_not_advance_the_global_generator() -> None:
    model = tiny_model("gpt2")
    torch.manual_seed(3)
    expected = torch.randn(2)
    torch.manual_seed(3)
    lora().wrap(model, head="causal")
    assert torch.equal(torch.randn(2), expected)


def test_unknown_target_module_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no linear layer 'q_proj'; it has c_attn, c_fc, c_proj, lm_head"):
        lora(target_modules=("q_proj",)).wrap(tiny_model("gpt2"), head="causal")


@pytest.mark.parametrize("target", ["lm_head", "c_attn"])
def test_output_embeddings_are_adapted_only_if_they_are_not_tied(target: str) -> None:
    tied = tiny_model("gpt2")
    assert tied.config.tie_word_embeddings
    wrapped = lora(target_modules=("c_attn", target))
    if target == "lm_head":
        with pytest.raises(ConfigError, match=r"lm_head of this GPT2LMHeadModel is tied to the input embeddings"):
            wrapped.wrap(tied, head="causal")
    else:
        wrapped.wrap(tied, head="causal")


def test_only_the_given_target_modules_are_adapted() -> None:
    policy = lora(target_modules=("c_attn",)).wrap(tiny_model("gpt2"), head="causal")
    assert {name.split(".")[-4] for name, p in policy.named_parameters() if p.requires_grad} == {"c_attn"}


def qlora() -> QLoRA:
    return QLoRA(r=2, alpha=4.0, dropout=0.0, rslora=False, dora=False, target_modules=None, compute_dtype="float32")


def test_qlora_uses_nf4_with_double_quantization() -> None:
    found = qlora().quantization()
    assert (found.load_in_4bit, found.bnb_4bit_quant_type, found.bnb_4bit_use_double_quant) == (True, "nf4", True)
    assert found.bnb_4bit_compute_dtype == torch.float32


def test_quantized_layers_use_the_differentiable_kernel() -> None:
    layer: Any = nn.Linear(2, 2)
    layer.support_avx512bf16_for_cpu = True
    model = nn.Sequential(nn.Linear(2, 2), layer)
    use_differentiable_kernel(model)
    assert layer.support_avx512bf16_for_cpu is False
    assert not hasattr(model[0], "support_avx512bf16_for_cpu")
