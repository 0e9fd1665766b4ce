"""Tokens and the embeddings that stand for them: a pad token, an embedding for each, and which of them are untrained.

A token added to a tokenizer has no row in the model's embeddings until they are resized, and the new row is not
learned while an adapter keeps the embeddings frozen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import AddedToken, PreTrainedTokenizerBase

from postrain.errors import ConfigError

# What the usual vocabularies reserve without using it in text, best first.
PAD_TOKENS = (
    "<|pad|>",
    "<pad>",
    "[PAD]",
    "<|padding|>",
    "<|finetune_right_pad_id|>",
    "<|fim_pad|>",
    "<|endoftext|>",
    "<|reserved_special_token_0|>",
    "<unk>",
)
# How byte-level BPE writes the byte 0xFF: in every such vocabulary, and in no UTF-8 text.
IMPOSSIBLE_BYTE = "ÿ"


def ensure_pad(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Gives a pad token that is not the end token, from the vocabulary as it is; the end token when there is none.

    Nothing is learned from padding either way. But others read a scalar model at the last token that is not padding,
    and leave padding out of what they train on: with pad = end that would be the wrong token, and no end at all.
    """
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return tokenizer
    vocabulary = tokenizer.get_vocab()
    free = [token for token in PAD_TOKENS if token in vocabulary and token != tokenizer.eos_token]
    if free:
        tokenizer.pad_token = free[0]
    elif vocabulary.keys() >= set(ByteLevel.alphabet()):
        # As a word of its own only: a saved tokenizer looks for its special tokens in text, and "Haÿ" stays a word.
        tokenizer.add_special_tokens({"pad_token": AddedToken(IMPOSSIBLE_BYTE, single_word=True, special=True)})
    else:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


UNTRAINED = 0.1
"""A row is untrained where it is this much nearer to a point of untrained rows than a usual row is to the mean."""
SAMPLE = 4096


def embeddings_needed(tokenizer: Any) -> int:
    """Embeddings that a tokenizer's ids need; ids may have gaps."""
    return max(tokenizer.get_vocab().values()) + 1


def check_embedding_count(tokenizer: Any, config: Mapping[str, Any], name: str) -> None:
    """Refuses a tokenizer with ids that the model of `config`, a config.json, has no embedding for."""
    have = config.get("text_config", config).get("vocab_size")
    needed = embeddings_needed(tokenizer)
    if not isinstance(have, int) or needed <= have:
        return
    vocabulary = tokenizer.get_vocab()
    size = f"{len(vocabulary)} tokens" if len(vocabulary) == needed else f"ids up to {needed - 1}"
    beyond = next(token for token, place in vocabulary.items() if place == needed - 1)
    raise ConfigError(
        f"{name}: the tokenizer has {size}, the model {have} embeddings; add the missing rows with model.resize=true, "
        f"resize the model and save it, or remove the added tokens (such as {beyond})"
    )


def resize_embeddings(model: Any, tokenizer: Any) -> None:
    """Gives the model a row for each of the tokenizer's ids, near the mean of the others (Hewitt 2021)."""
    needed = embeddings_needed(tokenizer)
    if needed > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(needed)


@torch.no_grad()
def untrained_tokens(model: Any, ids: Sequence[int], *, tokens: int) -> list[int]:
    """Those of `ids` whose input embedding no training has moved.

    Such rows lie at the mean of all rows, where `resize_token_embeddings` puts them, at 0, or among the rows that no
    token uses (from `tokens` on), which were never seen either. Rows that were drawn at random are not recognised;
    `randomly_initialized` names those that look so.
    """
    weight_VD: Tensor = model.get_input_embeddings().weight
    mean_D = weight_VD.mean(0, dtype=torch.float32)
    points = [mean_D, torch.zeros_like(mean_D)]
    if len(weight_VD) > tokens:
        points.append(weight_VD[tokens:].mean(0, dtype=torch.float32))
    sample_SD = weight_VD[: min(tokens, len(weight_VD))][:: max(1, tokens // SAMPLE)].float()
    usual = (sample_SD - mean_D).norm(dim=1).median()
    rows_ND = weight_VD[torch.tensor(ids, dtype=torch.long)].float()
    nearest_N = torch.stack([(rows_ND - point).norm(dim=1) for point in points]).amin(0)
    return [token for token, distance in zip(ids, nearest_N.tolist(), strict=True) if distance < UNTRAINED * usual]


@torch.no_grad()
def randomly_initialized(model: Any, tokenizer: Any, used: Sequence[int], *, but: Sequence[int] = ()) -> list[str]:
    """The added tokens among `used`, without `but`, whose embedding looks as drawn at random by a resize.

    Its standard deviation is the config's initializer_range, but for what D draws leave to chance: four times
    1 / √(2D) of it. Trained rows have another one, mostly.
    """
    weight_VD: Tensor = model.get_input_embeddings().weight
    added = tokenizer.added_tokens_decoder
    tokens = [token for token in used if token in added and token not in but]
    spread = getattr(model.config, "initializer_range", None)
    if not tokens or not spread:
        return []
    off_N = weight_VD[tokens].float().std(1) / spread - 1
    chance = 4 / (2 * weight_VD.shape[1]) ** 0.5
    return [added[token].content for token, off in zip(tokens, off_N.tolist(), strict=True) if abs(off) < chance]


def embedding_names(model: Any) -> list[str]:
    """Where a model's input embeddings are, and its output embeddings where they are weights of their own."""
    into, out = model.get_input_embeddings(), getattr(model, "get_output_embeddings", lambda: None)()
    own = out is not None and isinstance(out, nn.Linear) and out.weight is not into.weight
    return [name for name, module in model.named_modules() if module is into or (own and module is out)]
