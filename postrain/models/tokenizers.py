"""Tokenizers as models come with them, given a pad token where they have none of their own."""

from __future__ import annotations

from tokenizers.pre_tokenizers import ByteLevel
from transformers import AddedToken, PreTrainedTokenizerBase

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
