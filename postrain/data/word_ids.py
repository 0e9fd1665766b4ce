"""Token ids looked up by word, a quarter of the time of the tokenizer.

A tokenizer of GPT-2's kind cuts a text at its added tokens, and the rest into words by a regular expression. Each
word is tokenized on its own, so the ids of a text are those of its words, of which most occurred before. `WordIds`
cuts by Python's `re` and asks the tokenizer for new words only.

Only for the splitters of SPLITS, and for ASCII texts: there `re` and the tokenizer agree on letters, digits and spaces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

MAX_WORDS = 200_000
"""Words that are kept, in about 50 MB; then all are forgotten."""
GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace("{1,3}", "")
# Digits are cut off first, so a run of spaces before one is at the end of its part of the text.
SMOLLM = GPT_2.replace(r"| ?\p{N}+", r"|\p{N}").replace(r"\s+(?!\S)", r"\s+(?![^\s\p{N}])")
BYTES = {"type": "ByteLevel", "add_prefix_space": False}
SPLITS: tuple[tuple[list[Mapping[str, Any]], str], ...] = (
    ([{**BYTES, "use_regex": True}], GPT_2),
    ([{"type": "Digits", "individual_digits": True}, {**BYTES, "use_regex": True}], SMOLLM),
    *(
        (
            [
                {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
                {**BYTES, "use_regex": False},
            ],
            regex,
        )
        for regex in (LLAMA_3, QWEN_2)
    ),
)
"""The steps by which tokenizers cut a text, and the same as one regular expression."""
CHANGES_NO_ASCII = ("NFC", "NFKC")


class WordIds(dict[str, Sequence[int]]):
    """The ids of words by word."""

    def __init__(self, backend: Any, words: re.Pattern[str]) -> None:
        super().__init__()
        self.backend, self.words = backend, words
        self.added = {token.content: (number,) for number, token in backend.get_added_tokens_decoder().items()}
        longest_first = sorted(self.added, key=len, reverse=True)
        self.cuts = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if self.added else None

    def of(self, text: str) -> list[int]:
        """The ids of an ASCII text."""
        if len(self) > MAX_WORDS:
            self.clear()
        parts = self.cuts.split(text) if self.cuts else [text]
        ids: list[int] = []
        for number, part in enumerate(parts):
            if number % 2:
                ids += self.added[part]
            else:
                ids += chain.from_iterable(map(self.__getitem__, self.words.findall(part)))
        return ids

    def __missing__(self, word: str) -> Sequence[int]:
        found = self[word] = tuple(self.backend.encode(word, add_special_tokens=False).ids)
        return found


def word_ids(backend: Any) -> WordIds | None:
    """The words of a tokenizer of the library tokenizers; None if they may not determine the ids of a text."""
    steps = _state(backend.pre_tokenizer)
    regex = next((found for known, found in SPLITS if _describes(known, steps.get("pretokenizers", [steps]))), None)
    normalizer = _state(backend.normalizer).get("type")
    if regex is None or normalizer not in (None, *CHANGES_NO_ASCII) or getattr(backend.model, "dropout", None):
        return None
    added = backend.get_added_tokens_decoder().values()
    if any(one.lstrip or one.rstrip or one.single_word or one.normalized for one in added):
        return None
    return WordIds(backend, re.compile(in_ascii(regex), re.ASCII))


def in_ascii(regex: str) -> str:
    """A regular expression of the library tokenizers for ASCII texts, as Python's `re` reads it."""
    classes = regex.replace(r"\p{L}\p{N}]", "a-zA-Z0-9]").replace(r"\s\p{N}]", r"\s0-9]")
    return classes.replace(r"\p{L}", "[a-zA-Z]").replace(r"\p{N}", "[0-9]")


def _state(part: Any) -> dict[str, Any]:
    """The settings of a part of a tokenizer; {} without it."""
    return {} if part is None else json.loads(part.__getstate__())


def _describes(known: Sequence[Mapping[str, Any]], steps: Sequence[Mapping[str, Any]]) -> bool:
    """Whether steps have these settings. Others, such as trim_offsets, do not change the ids."""
    return len(known) == len(steps) and all(
        {**step, **one} == dict(step) for one, step in zip(known, steps, strict=True)
    )
