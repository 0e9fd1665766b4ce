"""An export loads in plain transformers or PEFT with the same logits, and is written atomically."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)

from postrain.models.export import export
from postrain.models.loading import load_causal, load_scalar, load_tokenizer
from postrain.models.parts import logits_of, trunk
from tests.models.conftest import END, PAD, TURN, architectures, byte_tokenizer, rows, source
from tests.models.test_adapters import logits, lora, moved

FP32 = torch.float32
TEXTS = ("a story", "a much longer story<|end|>", "x<|endoftext|>", "y")


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def last_real(model: nn.Module) -> torch.Tensor:
    """Scores of TEXTS at the last real token by length, as in postrain, [4, 1]."""
    batch = rows(*TEXTS)
    with torch.no_grad():
        states_BLD = trunk(model)(**batch, use_cache=False).last_hidden_state
        return logits_of(model, states_BLD[torch.arange(4), batch["attention_mask"].sum(1) - 1])


def plain_scores(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(**rows(*TEXTS)).logits


@architectures
def test_full_weights_load_in_plain_transformers(saved: Callable[..., Path], tmp_path: Path, architecture: str) -> None:
    model = moved(load_causal(source(saved(architecture)).resolve(), dtype=FP32))
    export(model, byte_tokenizer(), tmp_path / "out", card="# a card")
    close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()), logits(model))
    assert (tmp_path / "out" / "README.md").read_text() == "# a card"


def test_tokenizer_template_and_end_tokens_are_exported(saved: Callable[..., Path], tmp_path: Path) -> None:
    model = load_causal(source(saved()).resolve(), dtype=FP32)
    model.generation_config.eos_token_id = [END, 5]
    export(model, byte_tokenizer(), tmp_path / "out", card="", end_ids=[TURN])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    chat = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "hi<|end|>"
    assert tokenizer("hi<|end|>").input_ids[-1] == TURN
    config = GenerationConfig.from_pretrained(tmp_path / "out")
    assert config.eos_token_id == [END, TURN, 5]
    assert config.pad_token_id == PAD
    assert model.generation_config.eos_token_id == [END, 5]


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_adapter_loads_in_plain_peft(saved: Callable[..., Path], tmp_path: Path, architecture: str) -> None:
    base = saved(architecture)
    policy = moved(lora().wrap(load_causal(source(base).resolve(), dtype=FP32), head="causal"))
    export(policy, byte_tokenizer(), tmp_path / "out", card="# ours")
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert (tmp_path / "out" / "README.md").read_text() == "# ours"
    close(logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")), logits(policy))
    close(logits(load_causal(source(tmp_path / "out").resolve(), dtype=FP32)), logits(policy))
    names = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert names["base_model_name_or_path"] == str(base)


def test_adapter_on_weights_without_a_name_is_merged(saved: Callable[..., Path], tmp_path: Path) -> None:
    first = moved(lora().wrap(load_causal(source(saved()).resolve(), dtype=FP32), head="causal"))
    export(first, byte_tokenizer(), tmp_path / "first", card="")
    start = load_causal(source(tmp_path / "first").resolve(), dtype=FP32)
    second = moved(lora().wrap(start, head="causal"))
    expected = logits(second)
    export(second, byte_tokenizer(), tmp_path / "second", card="")
    close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "second").eval()), expected)
    # Training may continue: the policy still has its adapter.
    assert torch.equal(logits(second), expected)
    assert any("lora_A" in name for name, _ in second.named_parameters())


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2", "qwen3", "gemma2"])
def test_plain_transformers_scores_a_scalar_model_at_the_same_token(
    saved: Callable[..., Path], tmp_path: Path, architecture: str
) -> None:
    model = moved(load_scalar(source(saved(architecture)).resolve(), dtype=FP32))
    export(model, byte_tokenizer(), tmp_path / "out", card="")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    expected = last_real(model)
    close(plain_scores(plain), expected)
    close(last_real(load_scalar(source(tmp_path / "out").resolve(), dtype=FP32)), expected)
    # Each text alone has the same score: padding changes nothing.
    alone = torch.cat([plain(**rows(text)).logits for text in TEXTS])
    close(alone, expected)


def test_scalar_model_with_pad_equal_to_eos_is_scored_at_its_end(saved: Callable[..., Path], tmp_path: Path) -> None:
    # As in GPT-2: one special token, which ends texts. "x<|endoftext|>" must be scored at its last token.
    directory = saved("gpt2")
    byte_tokenizer(pad=None).save_pretrained(directory)
    resolved = source(directory).resolve()
    model, tokenizer = moved(load_scalar(resolved, dtype=FP32)), load_tokenizer(resolved)
    export(model, tokenizer, tmp_path / "out", card="")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    tokenizer.padding_side = "right"
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    found = plain(**tokenizer(list(TEXTS), return_tensors="pt", padding=True)).logits
    close(found, last_real(model))


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_scalar_adapter_exports_its_head(saved: Callable[..., Path], tmp_path: Path, architecture: str) -> None:
    base = saved(architecture)
    policy = moved(lora().wrap(load_scalar(source(base).resolve(), dtype=FP32), head="scalar"))
    export(policy, byte_tokenizer(), tmp_path / "out", card="")
    expected = last_real(policy)
    under: Any = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=PAD)
    close(plain_scores(PeftModel.from_pretrained(under, str(tmp_path / "out")).eval()), expected)
    resolved = source(tmp_path / "out").resolve()
    assert resolved.head == "scalar"
    close(last_real(load_scalar(resolved, dtype=FP32)), expected)


def test_earlier_export_is_replaced_without_leftover_files(saved: Callable[..., Path], tmp_path: Path) -> None:
    model = load_causal(source(saved()).resolve(), dtype=FP32)
    out = tmp_path / "runs" / "out"
    export(model, byte_tokenizer(), out, card="one")
    (out / "stray").touch()
    export(model, byte_tokenizer(), out, card="two")
    assert (out / "README.md").read_text() == "two"
    assert not (out / "stray").exists()
    assert [path.name for path in out.parent.iterdir()] == ["out"]


class Broken(nn.Module):
    """A model whose saving fails halfway, as on a full disk."""

    def save_pretrained(self, directory: Path) -> None:
        (directory / "model.safetensors").write_bytes(b"half")
        raise OSError("No space left on device")


def test_failed_export_keeps_the_earlier_one(saved: Callable[..., Path], tmp_path: Path) -> None:
    model = load_causal(source(saved()).resolve(), dtype=FP32)
    export(model, byte_tokenizer(), tmp_path / "out", card="good")
    with pytest.raises(OSError, match="No space left"):
        export(Broken(), byte_tokenizer(), tmp_path / "out", card="bad")
    assert (tmp_path / "out" / "README.md").read_text() == "good"
    close(logits(load_causal(source(tmp_path / "out").resolve(), dtype=FP32)), logits(model))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]
