"""Token ids looked up by word, a quarter of the time of the tokenizer.

A tokenizer of GPT-2's kind cuts a text at its added tokens, and the rest into words by a regular expression. Each
word is tokenized on its own, so the ids of a text are those of its words, of which most occurred before. `WordIds`
cuts by Python's `re` and asks the tokenizer for new words only.

Only for the splitters of SPLITS. Parts with characters of which `re` and the tokenizer may know different classes
(unicode_classes.py) are given to the tokenizer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from postrain.data.unicode_classes import in_ascii, in_unicode

MAX_WORDS = 200_000
"""Words that are kept, in about 50 MB; then all are forgotten."""
PARTS = 2_000
"""Added tokens and texts between them whose ids are kept: the first ones, of which a template repeats some."""
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
"""The normalizers that may come before the steps."""
UNPRINTABLE = (*range(33), 127, *range(128, 161), 173)
BYTE_LEVEL = {byte: chr(256 + place) for place, byte in enumerate(UNPRINTABLE)}
"""The characters that stand for bytes in the vocabulary, where they are not those of Latin-1 (a space is Ġ)."""


class WordIds(dict[str, Sequence[int]]):
    """The ids of words by word."""

    def __init__(self, backend: Any, regex: str) -> None:
        super().__init__()
        self.backend, self.normalizer, self.model = backend, backend.normalizer, backend.model
        self.ascii = in_ascii(regex)
        self.unicode, self.known = in_unicode(regex)
        decoder = backend.get_added_tokens_decoder()
        added: dict[str, Sequence[int]] = {token.content: [number] for number, token in decoder.items()}
        longest_first = sorted(added, key=len, reverse=True)
        self.cuts = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if added else None
        self.parts = added

    def of(self, text: str) -> list[int]:
        """The ids of a text."""
        if len(self) > MAX_WORDS:
            self.clear()
        ids: list[int] = []
        for part in self.cuts.split(text) if self.cuts else [text]:
            found = self.parts.get(part)
            if found is None:
                found = self._part_ids(part)
                if len(self.parts) < PARTS:
                    self.parts[part] = found
            ids += found
        return ids

    def _part_ids(self, part: str) -> Sequence[int]:
        """The ids of a text without added tokens."""
        if part.isascii():
            words = self.ascii.findall(part)
        else:
            normal = part if self.normalizer is None else self.normalizer.normalize_str(part)
            if not self.known.fullmatch(normal):
                return self.backend.encode(part, add_special_tokens=False).ids
            words = self.unicode.findall(normal)
        return [*chain.from_iterable(map(self.__getitem__, words))]

    def __missing__(self, word: str) -> Sequence[int]:
        if word.isascii() and word.isprintable():
            in_bytes = word.replace(" ", BYTE_LEVEL[32])
        else:
            in_bytes = word.encode().decode("latin-1").translate(BYTE_LEVEL)
        found = self[word] = tuple([token.id for token in self.model.tokenize(in_bytes)])
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
    return WordIds(backend, regex)


def _state(part: Any) -> dict[str, Any]:
    """The settings of a part of a tokenizer; {} without it."""
    return {} if part is None else json.loads(part.__getstate__())


def _describes(known: Sequence[Mapping[str, Any]], steps: Sequence[Mapping[str, Any]]) -> bool:
    """Whether steps have these settings. Others, such as trim_offsets, do not change the ids."""
    return len(known) == len(steps) and all(
        {**step, **one} == dict(step) for one, step in zip(known, steps, strict=True)
    )
