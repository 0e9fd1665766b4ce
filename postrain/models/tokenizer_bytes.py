"""How tokenizers write bytes and cut texts: the letters of byte-level BPE, the bytes and spaces of SentencePiece, and
the pre-tokenizers of common models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = (byte for byte in range(256) if byte not in _PRINTABLE)
LETTERS = {byte: chr(byte) for byte in _PRINTABLE} | {byte: chr(256 + place) for place, byte in enumerate(_OTHERS)}
"""The letter of each byte in byte-level BPE: printable Latin-1 is itself, the others follow from 256 on (a space is
Ġ)."""
_BYTES = {letter: byte for byte, letter in LETTERS.items()}
SPACE = "▁"
"""The space of SentencePiece."""
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
"""The token of a byte in SentencePiece, such as <0xE2>."""


def byte_level_bytes(token: str) -> bytes:
    """The bytes of a token of byte-level BPE."""
    return bytes(_BYTES[letter] for letter in token)


def sentencepiece_bytes(token: str) -> bytes:
    """The bytes of a token of SentencePiece."""
    byte = BYTE_TOKEN.fullmatch(token)
    return bytes.fromhex(byte[1]) if byte else token.replace(SPACE, " ").encode()


GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace("{1,3}", "")
# Digits are cut off first, so a run of spaces before one is at the end of its part of the text.
SMOLLM = GPT_2.replace(r"| ?\p{N}+", r"|\p{N}").replace(r"\s+(?!\S)", r"\s+(?![^\s\p{N}])")
PRE_TOKENIZERS = {"gpt-2": GPT_2, "smollm": SMOLLM, "llama-bpe": LLAMA_3, "qwen2": QWEN_2}
"""Pre-tokenizers of byte-level BPE by llama.cpp's name, each as one regular expression."""
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False}
_STEPS: Mapping[str, list[dict[str, Any]]] = {
    "gpt-2": [{**_BYTE_LEVEL, "use_regex": True}],
    "smollm": [{"type": "Digits", "individual_digits": True}, {**_BYTE_LEVEL, "use_regex": True}],
    **{
        name: [
            {"type": "Split", "pattern": {"Regex": PRE_TOKENIZERS[name]}, "behavior": "Isolated", "invert": False},
            {**_BYTE_LEVEL, "use_regex": False},
        ]
        for name in ("llama-bpe", "qwen2")
    },
}


def pre_tokenizer_name(settings: Mapping[str, Any] | None) -> str | None:
    """The name in PRE_TOKENIZERS of a pre-tokenizer, given as in a tokenizer.json; None for others."""
    steps = (settings or {}).get("pretokenizers", [settings or {}])
    return next((name for name, known in _STEPS.items() if _describes(known, steps)), None)


def _describes(known: list[dict[str, Any]], steps: list[Mapping[str, Any]]) -> bool:
    """Whether steps have these settings. Others, such as trim_offsets, do not change the ids."""
    return len(known) == len(steps) and all(
        {**step, **one} == dict(step) for one, step in zip(known, steps, strict=True)
    )
