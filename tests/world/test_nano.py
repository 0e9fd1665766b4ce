"""The bundled tokenizer and model: round trips, special tokens, assistant masks of the chat template, size."""

from __future__ import annotations

import json
import random
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from postrain.world import rows
from postrain.world.tokenizer import CHAT, SIZE, TEMPLATE, train

NANO = Path(str(files("postrain").joinpath("assets", "nano")))
MEGABYTE = 1_000_000

Tokenizer = Any  # transformers annotates tokenizer results with a union of all possible types


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return AutoTokenizer.from_pretrained(NANO)


def test_bundled_tokenizer_equals_a_newly_trained_one(tokenizer: Tokenizer) -> None:
    trained = json.loads(train().backend_tokenizer.to_str())
    assert trained["model"] == json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    assert tokenizer.chat_template == TEMPLATE
    assert len(tokenizer) <= SIZE


def test_tokenizer_round_trips_any_text(tokenizer: Tokenizer) -> None:
    rng = random.Random(0)
    texts = [row["text"] for row in rows("text", task="pages", count=50, seed=0, split="eval")]
    texts += ["".join(chr(rng.randint(32, 0x2FFF)) for _ in range(40)) for _ in range(50)]
    for text in texts:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_numbers_are_tokenized_digit_by_digit(tokenizer: Tokenizer) -> None:
    pieces = [tokenizer.decode([i]).strip() for i in tokenizer("x1234 = 17 + 905.")["input_ids"]]
    assert [piece for piece in pieces if piece.isdigit()] == list("123417905")


def test_special_tokens_are_distinct_single_tokens(tokenizer: Tokenizer) -> None:
    ids = [tokenizer(token)["input_ids"] for token in (*CHAT, tokenizer.eos_token, tokenizer.pad_token)]
    assert all(len(found) == 1 for found in ids)
    assert len({found[0] for found in ids}) == len(CHAT) + 2
    assert tokenizer.bos_token_id == tokenizer.eos_token_id != tokenizer.pad_token_id


def test_continuation_begins_at_a_token_boundary(tokenizer: Tokenizer) -> None:
    for task in ("stories", "sums"):
        for row in rows("demonstrations", task=task, count=50, seed=0, split="eval"):
            separate = tokenizer(row["prompt"])["input_ids"] + tokenizer(row["completion"])["input_ids"]
            assert tokenizer(row["prompt"] + row["completion"])["input_ids"] == separate


def test_chat_template_masks_assistant_tokens_and_their_end(tokenizer: Tokenizer) -> None:
    turns = [("system", "Be kind."), ("user", "What is 2 + 3?"), ("assistant", "It is 5."), ("user", "And 1 + 1?")]
    turns.append(("assistant", "It is 2."))
    chat = [{"role": role, "content": content} for role, content in turns]
    found = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    marked = [i for i, mark in zip(found["input_ids"], found["assistant_masks"], strict=True) if mark]
    assert tokenizer.decode(marked) == "It is 5.<|end|>It is 2.<|end|>"
    prompt = tokenizer.apply_chat_template(chat[:2], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|system|>\nBe kind.<|end|>\n<|user|>\nWhat is 2 + 3?<|end|>\n<|assistant|>\n"
    assert tokenizer.apply_chat_template(chat, tokenize=False).startswith(prompt)


def test_nano_has_both_end_tokens_and_gives_unseen_tokens_low_probability(
    tokenizer: Tokenizer,
) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(NANO)
    end, system = (tokenizer.convert_tokens_to_ids(token) for token in ("<|end|>", "<|system|>"))
    assert model.generation_config.eos_token_id == [tokenizer.eos_token_id, end]
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.n_positions == tokenizer.model_max_length == 512
    ids = torch.tensor([tokenizer("One day, Tim the fox went to the park.")["input_ids"]])
    probabilities = model(ids).logits.softmax(-1)
    assert probabilities[..., [tokenizer.pad_token_id, system, end]].max() < 1e-3
    norms = model.get_input_embeddings().weight.norm(dim=1)
    assert norms[[tokenizer.pad_token_id, system, end]].max() < 3 * norms.mean()


def test_nano_folder_is_at_most_12_mb() -> None:
    assert sum(path.stat().st_size for path in NANO.iterdir()) <= 12 * MEGABYTE
