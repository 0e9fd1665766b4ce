"""Tokenizer vocabulary and embeddings: the pad token, missing embeddings, untrained embeddings.

A token added to a tokenizer has no embedding until the model is resized, and an adapter keeps the new embedding frozen
unless adapter.new_tokens selects it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AddedToken, PreTrainedTokenizerBase

from postrain.errors import ConfigError
from postrain.models.tokenizer_bytes import LETTERS

# Tokens that common vocabularies reserve and do not use in text, best first.
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
# The byte 0xFF in byte-level BPE: part of every such vocabulary, and absent from UTF-8 text.
IMPOSSIBLE_BYTE = LETTERS[0xFF]


def ensure_pad(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Sets a pad token other than the EOS token without growing the vocabulary; the EOS token if there is none.

    Padding is never trained here. But other libraries read a scalar model at the last non-pad token and mask padding in
    training: with pad = EOS they would read the wrong token and never train the EOS token.
    """
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return tokenizer
    vocabulary = tokenizer.get_vocab()
    free = [token for token in PAD_TOKENS if token in vocabulary and token != tokenizer.eos_token]
    if free:
        tokenizer.pad_token = free[0]
    elif vocabulary.keys() >= set(LETTERS.values()):
        # As a single word only: a saved tokenizer searches text for its special tokens, and "Haÿ" must stay a word.
        tokenizer.add_special_tokens({"pad_token": AddedToken(IMPOSSIBLE_BYTE, single_word=True, special=True)})
    else:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


UNTRAINED = 0.1
"""An embedding is untrained if its distance to a center of untrained embeddings is below this fraction of the median
distance to the mean."""
SAMPLE = 4096


def embeddings_needed(tokenizer: Any) -> int:
    """Number of embeddings for a tokenizer's largest id; ids may have gaps."""
    return max(tokenizer.get_vocab().values()) + 1


def check_embedding_count(tokenizer: Any, config: Mapping[str, Any], name: str) -> None:
    """Raises ConfigError for token ids without an embedding in the model of `config`, a config.json."""
    have = config.get("text_config", config).get("vocab_size")
    needed = embeddings_needed(tokenizer)
    if not isinstance(have, int) or needed <= have:
        return
    vocabulary = tokenizer.get_vocab()
    size = f"{len(vocabulary)} tokens" if len(vocabulary) == needed else f"ids up to {needed - 1}"
    beyond = next(token for token, index in vocabulary.items() if index == needed - 1)
    raise ConfigError(
        f"{name}: the tokenizer has {size}, the model {have} embeddings; add the missing embeddings with "
        f"model.resize=true, or remove the added tokens (such as {beyond})"
    )


def resize_embeddings(model: Any, tokenizer: Any) -> None:
    """Adds embeddings for all token ids, initialized near the mean of the others (Hewitt 2021)."""
    needed = embeddings_needed(tokenizer)
    if needed > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(needed)


@torch.no_grad()
def untrained_tokens(model: Any, ids: Sequence[int], *, tokens: int) -> list[int]:
    """The ids among `ids` whose input embedding is untrained.

    Untrained embeddings are near the mean of all (where `resize_token_embeddings` puts them), near 0, or near the
    unused embeddings from index `tokens` on. Randomly initialized ones are not detected; see `randomly_initialized`.
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
def randomly_initialized(model: Any, tokenizer: Any, used: Sequence[int], *, exclude: Sequence[int] = ()) -> list[str]:
    """The added tokens among `used`, without `exclude`, whose embedding looks randomly initialized by a resize.

    Its standard deviation equals the config's initializer_range within four standard errors, 4 / √(2D) relative.
    Trained embeddings mostly differ.
    """
    weight_VD: Tensor = model.get_input_embeddings().weight
    added = tokenizer.added_tokens_decoder
    tokens = [token for token in used if token in added and token not in exclude]
    spread = getattr(model.config, "initializer_range", None)
    if not tokens or not spread:
        return []
    off_N = weight_VD[tokens].float().std(1) / spread - 1
    chance = 4 / (2 * weight_VD.shape[1]) ** 0.5
    return [added[token].content for token, off in zip(tokens, off_N.tolist(), strict=True) if abs(off) < chance]


def ties_embeddings(model: Any) -> bool:
    """Whether input and output embeddings are the same weights."""
    return bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))


def embedding_names(model: Any) -> list[str]:
    """Module names of a model's input embeddings and, if not tied, of its output embeddings."""
    into, out = model.get_input_embeddings(), getattr(model, "get_output_embeddings", lambda: None)()
    own = out is not None and isinstance(out, nn.Linear) and out.weight is not into.weight
    return [name for name, module in model.named_modules() if module is into or (own and module is out)]
