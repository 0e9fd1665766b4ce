"""The tokenizer of a model as GGUF metadata, such that llama.cpp splits texts into the same tokens.

Byte-level BPE, if llama.cpp knows its pre-tokenizer, and BPE with byte fallback (SentencePiece), as in Gemma.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from postrain.errors import ConfigError
from postrain.models.tokenizer_bytes import BYTE_TOKEN, PRE_TOKENIZERS, SPACE, pre_tokenizer_name

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def add_tokenizer(writer: Any, tokenizer: Any, *, embeddings: int, end_ids: Sequence[int] = ()) -> None:
    """Writes vocabulary, merges, special tokens and the chat template.

    `embeddings` is the number of token ids of the model; ids without a token are unused ones. `end_ids` are the tokens
    that end a completion.
    """
    inner = json.loads(tokenizer.backend_tokenizer.to_str())
    if inner["model"]["type"] != "BPE":
        raise ConfigError(f"--gguf: a {inner['model']['type']} tokenizer is not supported; expected BPE")
    add = _add_sentencepiece if inner["model"].get("byte_fallback") else _add_byte_level
    tokens, types = vocabulary(tokenizer, inner, embeddings)
    add(writer, inner, tokens)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    _add_special_tokens(writer, tokenizer, end_ids)
    if tokenizer.chat_template:
        writer.add_chat_template(portable_template(tokenizer))


def vocabulary(tokenizer: Any, inner: Mapping[str, Any], embeddings: int) -> tuple[list[str], list[int]]:
    """The token of each id and its type."""
    tokens, types = [f"[PAD{index}]" for index in range(embeddings)], [UNUSED] * embeddings
    for token, index in inner["model"]["vocab"].items():
        fallback = bool(inner["model"].get("byte_fallback")) and BYTE_TOKEN.fullmatch(token)
        tokens[index], types[index] = token, BYTE if fallback else NORMAL
    for added in inner["added_tokens"]:
        # llama.cpp searches the text for added tokens as they are written.
        text = added["content"].replace(SPACE, " ")
        tokens[added["id"]], types[added["id"]] = text, CONTROL if added["special"] else USER_DEFINED
    if inner["model"].get("byte_fallback") and tokenizer.unk_token_id is not None:
        types[tokenizer.unk_token_id] = UNKNOWN
    return tokens, types


def _add_byte_level(writer: Any, inner: Mapping[str, Any], tokens: Sequence[str]) -> None:
    # NFC changes decomposed characters only.
    normal = (inner["normalizer"] or {}).get("type", "NFC") == "NFC"
    name = pre_tokenizer_name(inner["pre_tokenizer"]) if normal else None
    ignores = bool(inner["model"].get("ignore_merges"))
    if name is None or ignores != (name == "llama-bpe"):
        raise ConfigError(
            "--gguf: llama.cpp would split texts into other tokens than this tokenizer, whose pre-tokenizer is not one "
            f"of {', '.join(PRE_TOKENIZERS)}; convert the model with convert_hf_to_gguf.py of llama.cpp"
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in inner["model"]["merges"]]
    # An empty array has no type.
    if merges:
        writer.add_token_merges(merges)


def _add_sentencepiece(writer: Any, inner: Mapping[str, Any], tokens: Sequence[str]) -> None:
    """llama.cpp merges the pair of neighbours whose token has the highest score: minus the rank of its first merge."""
    rank = dict.fromkeys(tokens, 0)
    for number, pair in enumerate(inner["model"]["merges"], start=1):
        merged = "".join(pair.split(" ") if isinstance(pair, str) else pair)
        rank[merged] = rank.get(merged) or number
    normalizer = json.dumps(inner["normalizer"])
    if SPACE not in normalizer and json.dumps(SPACE).strip('"') not in normalizer:
        raise ConfigError(f"--gguf: expected a tokenizer that writes spaces as {SPACE}; its normalizer is {normalizer}")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_scores([-float(rank[token]) for token in tokens])
    writer.add_add_space_prefix('"Prepend"' in normalizer)


def _add_special_tokens(writer: Any, tokenizer: Any, end_ids: Sequence[int]) -> None:
    ids = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    ids["unk"] = tokenizer.unk_token_id
    ids["eot"] = next((token for token in end_ids if token != tokenizer.eos_token_id), None)
    for name, index in ids.items():
        if index is not None:
            getattr(writer, f"add_{name}_token_id")(index)
    # Written always: llama.cpp adds a begin token by default for some pre-tokenizers.
    writer.add_add_bos_token(adds_bos(tokenizer))
    writer.add_add_eos_token(False)


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer puts a begin token before a text."""
    found = tokenizer("a").input_ids
    return bool(found) and found[0] == tokenizer.bos_token_id and len(found) > 1


def portable_template(tokenizer: Any) -> str:
    """The chat template without the tag `generation`, which only transformers knows; it renders the same text.

    Raises ConfigError for a template that does not.
    """
    template = re.sub(r"\{%(-?) *generation *(-?)%\}", r"{%\1 if true \2%}", str(tokenizer.chat_template))
    template = re.sub(r"\{%(-?) *endgeneration *(-?)%\}", r"{%\1 endif \2%}", template)
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for last in (1, 2):
        texts = [
            tokenizer.apply_chat_template(chat[:last], tokenize=False, add_generation_prompt=True, chat_template=each)
            for each in (template, None)
        ]
        if texts[0] != texts[1]:
            raise ConfigError(
                "--gguf: llama.cpp does not know the tag generation of the chat template, which renders another text "
                "without it; remove the tag from the template"
            )
    return template
