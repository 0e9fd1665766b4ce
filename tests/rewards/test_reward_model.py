"""reward_model.py: an outcome reward model scores text, independent of batch and padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, GPT2Config, LlamaConfig

from postrain.data.module import DataModule
from postrain.errors import ConfigError
from postrain.rewards.reward_model import OutcomeRewardModel

NANO = Path(__file__).parents[2] / "postrain" / "assets" / "nano"
PROMPTS = ("Say hello.", "What is 3 + 4? " * 5, "Tell a story.", "Hi.")
COMPLETIONS = ("Hello, dear friend!", "7", "Tom ran home. " * 9, "")


def reward_model(folder: Path, *, architecture: str, pad_is_eos: bool = False) -> Path:
    """A random reward model with the bundled tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(NANO)
    if pad_is_eos:
        tokenizer.pad_token = tokenizer.eos_token
    size: dict[str, Any] = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "num_labels": 1}
    ends: dict[str, Any] = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    if architecture == "gpt2":
        drops: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        config = GPT2Config(**size, **ends, **drops, n_layer=2, n_embd=32, n_head=2, n_positions=128)
    else:
        shape: dict[str, Any] = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        }
        config = LlamaConfig(**size, **ends, **shape, max_position_embeddings=128)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load(path: Path, micro_batch_tokens: int = 4096) -> OutcomeRewardModel:
    return OutcomeRewardModel(path=str(path), micro_batch_tokens=micro_batch_tokens, dtype="fp32")


def scores(reward: OutcomeRewardModel, order: tuple[int, ...] = (0, 1, 2, 3)) -> torch.Tensor:
    columns = tuple({} for _ in order)
    return reward([PROMPTS[i] for i in order], [COMPLETIONS[i] for i in order], columns).total_B


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_score_does_not_depend_on_the_batch(tmp_path: Path, architecture: str, pad_is_eos: bool) -> None:
    path = reward_model(tmp_path, architecture=architecture, pad_is_eos=pad_is_eos)
    together = scores(load(path))
    assert len(set(together.tolist())) == 4
    alone = torch.cat([scores(load(path), (index,)) for index in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(together[[2, 0]], scores(load(path, micro_batch_tokens=1), (2, 0)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_score_equals_transformers_on_the_same_tokens(tmp_path: Path, side: str) -> None:
    reward = load(reward_model(tmp_path, architecture="llama"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, padding_side=side)
    rows = reward.rows(PROMPTS, COMPLETIONS, ({},) * 4).ids
    # every row ends with the end token, which is also the last non-padding token that transformers scores
    assert all(int(ids[-1]) in reward.template.stop_ids for ids in rows)
    batch = tokenizer.pad({"input_ids": [ids.tolist() for ids in rows]}, return_tensors="pt")
    with torch.no_grad():
        theirs_B = AutoModelForSequenceClassification.from_pretrained(tmp_path)(**batch).logits.squeeze(-1)
    torch.testing.assert_close(scores(reward), theirs_B, atol=1e-5, rtol=0)


def test_long_text_loses_the_beginning_of_its_prompt(tmp_path: Path) -> None:
    reward = load(reward_model(tmp_path, architecture="gpt2"))
    short, long = reward.rows(["b " * 200, "a " * 200 + "b " * 200], ["end"] * 2, [{}] * 2).ids
    assert len(long) == 128
    assert torch.equal(short[-100:], long[-100:])
    assert reward(["a " * 400], ["end"], [{}]).total_B.isfinite().all()


def test_reward_model_is_frozen_and_logs_its_part(tmp_path: Path) -> None:
    reward = load(reward_model(tmp_path, architecture="gpt2"))
    assert not any(parameter.requires_grad for parameter in reward.model.parameters())
    assert not reward.model.training
    rewards = reward(PROMPTS, COMPLETIONS, ({},) * 4)
    assert rewards.parts == {"learned": tuple(rewards.total_B.tolist())}


def test_non_finite_score_is_an_error(tmp_path: Path) -> None:
    reward = load(reward_model(tmp_path, architecture="gpt2"))
    with torch.no_grad():
        next(reward.model.parameters())[reward.rows(PROMPTS[:1], ("Hm",), [{}]).ids[0][-2]] = float("nan")
    with pytest.raises(ConfigError, match=r"reward.path=.* returns nan for row 7, .*overflow in reward.dtype=fp32$"):
        reward(PROMPTS[:2], ("Hm", "Hm"), ({"row": 7}, {"row": 8}))


def test_language_model_and_missing_path_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"reward.path=.*: a language model, not a reward model"):
        load(NANO)
    with pytest.raises(ConfigError, match=r"reward.path=.*nowhere: there is no such directory"):
        load(tmp_path / "nowhere")


SYSTEM, QUESTION = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who am I?"}
TURNS = [{"role": "user", "content": "I am Mia."}, {"role": "assistant", "content": "Hello."}, QUESTION]
TRANSCRIPT = "\n\nHuman: I am Mia.\n\nAssistant: Hello.\n\nHuman: Who am I?\n\nAssistant:"


@pytest.mark.parametrize(
    "pair",
    [
        {"prompt": [SYSTEM, QUESTION], "chosen": "Mia.", "rejected": "You."},
        {"prompt": [SYSTEM, *TURNS], "chosen": "Mia.", "rejected": "You."},
        {"chosen": f"{TRANSCRIPT} Mia.", "rejected": f"{TRANSCRIPT} You."},
        # a column of the whole conversation, as in UltraFeedback
        {"prompt": "Who am I?", "chosen": "Mia.", "rejected": "You.", "messages": [*TURNS[2:], TURNS[1]]},
    ],
    ids=["system", "turns", "transcript", "messages"],
)
def test_scored_rows_equal_the_trained_rows(tmp_path: Path, pair: dict[str, Any]) -> None:
    reward = load(reward_model(tmp_path, architecture="gpt2"))
    data = {}
    for kind in ("Preference", "Prompt"):
        data[kind] = DataModule([pair, {"prompt": "Hi", "chosen": "a", "rejected": "b"}], eval_rows=0)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
        settings = {"context": 128, "batch_size": 1, "updates": 1, "seed": 0, "completion_tokens": 8}
        data[kind].prepare(kind=kind, tokenizer=tokenizer, **settings)
    trained, sampled = (data[kind].train[0] for kind in data)
    rows = reward.rows([sampled.text] * 2, ["Mia.", "You."], [sampled.columns] * 2).ids
    for mine, theirs in zip(rows, (trained.chosen, trained.rejected), strict=True):
        assert mine.tolist() == theirs.ids.tolist()
