"""Tokens without an embedding are refused or get one, and new tokens are trained besides an adapter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from postrain.errors import ConfigError
from postrain.models.export import export
from postrain.models.loading import load_causal, load_scalar, load_tokenizer
from postrain.models.parts import parts_agree
from postrain.models.reference import Reference
from postrain.models.vocabulary import embedding_names, randomly_initialized, untrained_tokens
from postrain.models.weight_sync import merged_weights
from tests.models.conftest import VOCABULARY, byte_tokenizer, source, tiny_model
from tests.models.test_adapters import logits, lora, moved

FP32 = torch.float32
NEW = [VOCABULARY, VOCABULARY + 1]


@pytest.fixture
def longer(saved: Callable[..., Path]) -> Callable[..., Path]:
    """A saved model whose tokenizer has two more tokens than the model has embeddings."""

    def save(architecture: str = "gpt2", *, resized: bool = False) -> Path:
        directory, tokenizer = saved(architecture), byte_tokenizer()
        tokenizer.add_tokens(["<think>", "</think>"], special_tokens=True)
        tokenizer.save_pretrained(directory)
        if resized:
            model: Any = AutoModelForCausalLM.from_pretrained(directory)
            model.resize_token_embeddings(len(tokenizer))
            model.save_pretrained(directory)
        return directory

    return save


def test_tokenizer_with_more_tokens_than_embeddings_is_refused(longer: Callable[..., Path]) -> None:
    with pytest.raises(
        ConfigError, match=r"the tokenizer has 261 tokens, the model 259 embeddings; .*model.resize=true"
    ):
        load_tokenizer(source(longer()).resolve())


def test_id_beyond_the_embeddings_is_refused_with_few_tokens(saved: Callable[..., Path]) -> None:
    directory = saved()
    text = (directory / "tokenizer.json").read_text().replace('"id": 258', '"id": 300')
    (directory / "tokenizer.json").write_text(text.replace('"<|end|>": 258', '"<|end|>": 300'))
    with pytest.raises(ConfigError, match=r"the tokenizer has ids up to 300, the model 259 embeddings; .*<\|end\|>"):
        load_tokenizer(source(directory).resolve())


@pytest.mark.parametrize("load", [load_causal, load_scalar])
def test_resize_adds_missing_embeddings_and_keeps_the_others(longer: Callable[..., Path], load: Any) -> None:
    resolved = source(longer(), resize=True).resolve()
    torch.manual_seed(0)
    model: Any = load(resolved, dtype=FP32)
    rows = model.get_input_embeddings().weight
    assert rows.shape[0] == model.config.vocab_size == VOCABULARY + 2
    before: Any = tiny_model("gpt2")
    assert torch.equal(rows[:VOCABULARY], before.get_input_embeddings().weight)
    # The old name has other weights, so an adapter on these is merged.
    assert (resolved.loads_as, model.name_or_path) == (None, "")
    assert len(load_tokenizer(resolved)) == VOCABULARY + 2


def test_untrained_embeddings_are_detected() -> None:
    model: Any = tiny_model("llama")
    rows = model.get_input_embeddings().weight
    with torch.no_grad():
        rows[7] = rows.mean(0) + 1e-4  # as after a resize
        rows[9] = 1e-5
        rows[250:] = 5.0 + 1e-3 * torch.randn_like(rows[250:])  # unused: moved together by the softmax gradient
    assert untrained_tokens(model, [3, 7, 8, 9, 249, 250], tokens=251) == [7, 9, 250]
    assert untrained_tokens(tiny_model("llama"), list(range(VOCABULARY)), tokens=VOCABULARY) == []


@pytest.mark.parametrize(("architecture", "tied"), [("gpt2", True), ("llama", False), ("qwen2", True)])
def test_new_tokens_are_trained_besides_an_adapter_that_plain_peft_loads(
    longer: Callable[..., Path], tmp_path: Path, architecture: str, tied: bool
) -> None:
    resolved = source(longer(architecture, resized=True)).resolve()
    model: Any = load_causal(resolved, dtype=FP32)
    tokenizer = load_tokenizer(resolved)
    names = embedding_names(model)
    assert len(names) == 2 - tied
    before, rows = logits(model), model.get_input_embeddings().weight.detach().clone()
    learned = lora().new_token_ids(model, tokenizer, [1, 2, *NEW])
    assert learned == NEW
    policy: Any = lora().wrap(model, head="causal", trainable_tokens=learned)
    assert torch.equal(logits(policy), before)
    assert parts_agree(moved(policy))
    ids = torch.tensor([[1, *NEW, 2]])
    with torch.no_grad():
        found = policy(input_ids=ids).logits
        with Reference.for_policy(policy).scoring() as start:
            assert torch.equal(logits(start), before)
    synced = dict(merged_weights(policy))[f"{names[0]}.weight"]
    assert (synced != rows).any(1).nonzero().flatten().tolist() == NEW
    export(policy, tokenizer, tmp_path / "out", card="")
    again = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ours: Any = load_causal(source(tmp_path / "out").resolve(), dtype=FP32)
    with torch.no_grad():
        for one in (again, ours):
            torch.testing.assert_close(one(input_ids=ids).logits, found, rtol=0, atol=1e-4)


def test_adapter_on_resized_embeddings_is_merged_for_plain_transformers(
    longer: Callable[..., Path], tmp_path: Path
) -> None:
    resolved = source(longer(), resize=True).resolve()
    model, tokenizer = load_causal(resolved, dtype=FP32), load_tokenizer(resolved)
    policy: Any = moved(lora().wrap(model, head="causal", trainable_tokens=lora().new_token_ids(model, tokenizer, NEW)))
    export(policy, tokenizer, tmp_path / "out", card="")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == plain.config.vocab_size == VOCABULARY + 2
    with torch.no_grad():
        ids = torch.tensor([[1, *NEW]])
        torch.testing.assert_close(plain(input_ids=ids).logits, policy(input_ids=ids).logits, rtol=0, atol=1e-4)


def test_only_named_new_tokens_are_trained_and_unknown_ones_refused() -> None:
    model, tokenizer = tiny_model("gpt2"), byte_tokenizer()
    vocabulary = tokenizer.get_vocab()
    assert lora(new_tokens=("<|end|>", "a")).new_token_ids(model, tokenizer, [1]) == [
        vocabulary["a"],
        vocabulary["<|end|>"],
    ]
    assert lora(new_tokens=()).new_token_ids(model, tokenizer, [1]) == []
    with pytest.raises(ConfigError, match=r"adapter.new_tokens: the tokenizer has no token '<think>'"):
        lora(new_tokens=("<think>",)).new_token_ids(model, tokenizer, [1])


def test_randomly_initialized_added_tokens_are_named() -> None:
    model: Any = tiny_model("llama")
    model.resize_token_embeddings(VOCABULARY + 2, mean_resizing=False)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<think>", "</think>"], special_tokens=True)
    used = [0, 1, tokenizer.eos_token_id, *NEW]
    assert randomly_initialized(model, tokenizer, used) == ["<think>", "</think>"]
    assert randomly_initialized(model, tokenizer, used, exclude=NEW[:1]) == ["</think>"]
