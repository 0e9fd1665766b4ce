"""Loading weights: equal to the saved ones, in the requested dtype, with errors for missing parts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from postrain.errors import ConfigError
from postrain.models.loading import fuse_gelu, load, load_causal, load_scalar, load_tokenizer, merged_on_disk
from postrain.models.vocabulary import ensure_pad
from tests.models.conftest import END, PAD, architectures, byte_tokenizer, source, tiny_model
from tests.models.test_adapters import logits, lora, moved

FP32 = torch.float32


@architectures
def test_model_loads_in_eval_mode_with_sdpa(saved: Callable[..., Path], architecture: str) -> None:
    model = load_causal(source(saved(architecture)).resolve(), dtype=FP32)
    expected = tiny_model(architecture)
    fuse_gelu(expected)
    assert torch.equal(logits(model), logits(expected))
    assert not model.training
    # Gemma 2 soft-caps its attention scores, which SDPA does not support.
    assert model.config._attn_implementation == ("eager" if architecture == "gemma2" else "sdpa")
    assert {parameter.dtype for parameter in model.parameters()} == {FP32}


def test_gpt2_has_a_single_operation_for_its_gelu() -> None:
    model = tiny_model("gpt2")
    before = logits(model)
    fuse_gelu(model)
    assert sum(isinstance(module, torch.nn.GELU) for module in model.modules()) == 2  # layers
    assert torch.allclose(logits(model), before, atol=1e-6)
    assert model.config.activation_function == "gelu_new"


def test_weights_have_the_requested_dtype(saved: Callable[..., Path]) -> None:
    resolved = source(saved("llama")).resolve()
    for load_model in (load_causal, load_scalar):
        model = load_model(resolved, dtype=torch.bfloat16)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_bundled_model_loads() -> None:
    resolved = source("bundled:nano").resolve()
    model, tokenizer = load_causal(resolved, dtype=FP32), load_tokenizer(resolved)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert len(tokenizer) <= model.config.vocab_size
    assert resolved.context == model.config.max_position_embeddings


@architectures
def test_new_scalar_head_is_small_and_seeded(saved: Callable[..., Path], architecture: str) -> None:
    resolved = source(saved(architecture)).resolve()
    if architecture in ("granite", "cohere"):  # transformers has no sequence classifier for these
        with pytest.raises(ConfigError, match=r"no .* model with a scalar head"):
            load_scalar(resolved, dtype=FP32)
        return

    def head(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        model: Any = load_scalar(resolved, dtype=FP32)
        assert model.config.pad_token_id == PAD
        return model.score.weight

    assert head(1).shape == (1, 16)
    assert torch.equal(head(1), head(1))
    assert not torch.equal(head(1), head(2))
    # Sixteen draws of standard deviation 1 / 17.
    assert 0 < head(1).abs().max() < 4 / 17


def test_trained_scalar_head_is_loaded(saved: Callable[..., Path], tmp_path: Path) -> None:
    model: Any = moved(load_scalar(source(saved()).resolve(), dtype=FP32))
    model.save_pretrained(tmp_path / "rm")
    byte_tokenizer().save_pretrained(tmp_path / "rm")
    resolved = source(tmp_path / "rm").resolve()
    assert resolved.head == "scalar"
    again: Any = load_scalar(resolved, dtype=FP32)
    assert torch.equal(again.score.weight, model.score.weight)
    with pytest.raises(ConfigError, match="rm is a reward model, which cannot generate"):
        load_causal(resolved, dtype=FP32)


def test_new_weights_depend_only_on_the_seed(saved: Callable[..., Path]) -> None:
    directory = saved()
    (directory / "model.safetensors").unlink()
    resolved = source(directory, from_scratch=True).resolve()

    def fresh(seed: int, draws: int = 0) -> torch.Tensor:
        torch.manual_seed(seed)
        torch.randn(draws)
        return logits(load_causal(resolved, dtype=FP32))

    assert torch.equal(fresh(1), fresh(1, draws=3))
    assert not torch.equal(fresh(1), fresh(2))


def save_adapter(base: Path, directory: Path, head: str = "causal") -> torch.Tensor:
    """Saves a trained adapter with PEFT, without a tokenizer; returns its logits."""
    kind = AutoModelForCausalLM if head == "causal" else AutoModelForSequenceClassification
    extra = {} if head == "causal" else {"num_labels": 1, "pad_token_id": PAD}
    policy: Any = moved(lora().wrap(kind.from_pretrained(base, **extra).eval(), head=head))  # pyright: ignore
    policy.save_pretrained(directory)
    return logits(policy)


@pytest.mark.parametrize("head", ["causal", "scalar"])
def test_adapter_is_merged_and_the_gap_is_measured(saved: Callable[..., Path], tmp_path: Path, head: str) -> None:
    expected = save_adapter(saved(), tmp_path / "adapter", head)
    resolved = source(tmp_path / "adapter").resolve()
    assert (resolved.name, resolved.head, resolved.loads_as) == ("adapter", head, None)
    found = load(resolved, head, dtype=FP32)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(logits(found.model), expected, rtol=1e-4, atol=1e-5)
    assert all(parameter.requires_grad for parameter in found.model.parameters())
    assert found.merge_gap is not None
    assert found.merge_gap < 1e-4
    assert load_tokenizer(resolved).pad_token_id == PAD


def test_reward_model_loads_from_a_language_model_adapter(saved: Callable[..., Path], tmp_path: Path) -> None:
    base = saved()
    save_adapter(base, tmp_path / "adapter")
    model: Any = load_scalar(source(tmp_path / "adapter").resolve(), dtype=FP32)
    plain: Any = load_scalar(source(base).resolve(), dtype=FP32)
    assert not torch.equal(model.transformer.h[0].attn.c_attn.weight, plain.transformer.h[0].attn.c_attn.weight)
    assert torch.equal(model.score.weight, plain.score.weight)


def test_stacked_adapters_are_merged_in_order(saved: Callable[..., Path], tmp_path: Path) -> None:
    save_adapter(saved(), tmp_path / "first")
    model = load_causal(source(tmp_path / "first").resolve(), dtype=FP32)
    policy: Any = moved(lora().wrap(model, head="causal"))
    policy.save_pretrained(tmp_path / "second")
    config = tmp_path / "second" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "../first"}))
    resolved = source(tmp_path / "second").resolve()
    assert [path.name for path in resolved.adapters] == ["first", "second"]
    found = load_causal(resolved, dtype=FP32)
    torch.testing.assert_close(logits(found), logits(policy), rtol=1e-4, atol=1e-4)


def test_adapter_is_merged_on_disk_before_quantization(saved: Callable[..., Path], tmp_path: Path) -> None:
    expected = save_adapter(saved(), tmp_path / "adapter")
    resolved = source(tmp_path / "adapter").resolve()
    merged = merged_on_disk(resolved)
    assert (merged.adapters, merged.directory.name) == ((), f"merged-{resolved.fingerprint}")
    assert merged_on_disk(resolved) == merged
    torch.testing.assert_close(logits(load_causal(merged, dtype=FP32)), expected, rtol=1e-4, atol=1e-5)


def test_quantizing_weights_from_scratch_is_refused(saved: Callable[..., Path]) -> None:
    resolved = source(saved(), from_scratch=True).resolve()
    with pytest.raises(ConfigError, match=r"adapter=qlora quantizes saved weights, and model.from_scratch=true"):
        load_causal(resolved, dtype=FP32, quantization="4 bits")


def test_weights_that_do_not_fit_the_config_are_refused(saved: Callable[..., Path]) -> None:
    directory = saved("llama")
    weights = load_file(directory / "model.safetensors")
    save_file(
        {name: w for name, w in weights.items() if "layers.1.mlp.up" not in name}, directory / "model.safetensors"
    )
    with pytest.raises(ConfigError, match=r"such as model.layers.1.mlp.up_proj.weight \(1 in all\)"):
        load_causal(source(directory).resolve(), dtype=FP32)
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 3)
    save_file(weights, directory / "model.safetensors")
    with pytest.raises(ConfigError, match=r"such as model.layers.1.mlp.up_proj.weight"):
        load_causal(source(directory).resolve(), dtype=FP32)


def test_unreadable_tokenizer_or_one_without_eos_is_refused(saved: Callable[..., Path]) -> None:
    directory = saved()
    resolved = source(directory).resolve()
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(ConfigError, match="has no end token"):
        load_tokenizer(resolved)
    (directory / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_tokenizer(resolved)


def test_existing_pad_token_is_kept() -> None:
    assert ensure_pad(byte_tokenizer()).pad_token_id == PAD


def test_reserved_token_becomes_the_pad_token() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token, tokenizer.eos_token = None, "<|end|>"
    assert ensure_pad(tokenizer).pad_token == "<|pad|>"
    assert len(tokenizer) == 259


def test_without_a_reserved_token_the_pad_token_is_byte_ff(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(pad=None)
    tokenizer.pad_token = tokenizer.eos_token
    text = "L'Haÿ-les-Roses, naïve"
    before = tokenizer(text).input_ids
    ensure_pad(tokenizer).save_pretrained(tmp_path)
    assert tokenizer.pad_token_id == tokenizer.convert_tokens_to_ids("ÿ") != END
    assert len(tokenizer) == 259
    assert PreTrainedTokenizerFast.from_pretrained(tmp_path)(text).input_ids == before == tokenizer(text).input_ids
    assert PreTrainedTokenizerFast.from_pretrained(tmp_path).pad_token_id == tokenizer.pad_token_id
