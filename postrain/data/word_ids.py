"""Token ids looked up by word, a quarter of the time of the tokenizer.

A tokenizer of GPT-2's kind cuts a text at its added tokens, and the rest into words by a regular expression. Each
word is tokenized on its own, so the ids of a text are those of its words. Most words have occurred before: `WordIds`
cuts by Python's `re` and asks the tokenizer for new words only.

Only for the pre-tokenizers of PRE_TOKENIZERS. The tokenizer gets the parts whose characters `re` may assign to other
classes (unicode_classes.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from typing import Any

from postrain.data.unicode_classes import in_ascii, in_unicode
from postrain.models.tokenizer_bytes import LETTERS, PRE_TOKENIZERS, pre_tokenizer_name

MAX_WORDS = 200_000
"""Words that are kept, in about 50 MB; then all are forgotten."""
PARTS = 2_000
"""Number of added tokens and texts between them whose ids are kept; a template repeats some of them."""
CHANGES_NO_ASCII = ("NFC", "NFKC")
"""The normalizers that may come before the steps."""


class WordIds(dict[str, Sequence[int]]):
    """The ids of words by word."""

    def __init__(self, backend: Any, regex: str) -> None:
        super().__init__()
        self.backend, self.normalizer, self.model = backend, backend.normalizer, backend.model
        self.regex, self.ascii = regex, in_ascii(regex)
        decoder = backend.get_added_tokens_decoder()
        added: dict[str, Sequence[int]] = {token.content: [number] for number, token in decoder.items()}
        longest_first = sorted(added, key=len, reverse=True)
        self.cuts = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if added else None
        self.parts = added

    @cached_property
    def unicode(self) -> tuple[re.Pattern[str], re.Pattern[str]]:
        """The words of other texts than ASCII, and the texts for which it is right. Takes 80 ms to compile."""
        return in_unicode(self.regex)

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
            pattern, known = self.unicode
            if not known.fullmatch(normal):
                return self.backend.encode(part, add_special_tokens=False).ids
            words = pattern.findall(normal)
        return [*chain.from_iterable(map(self.__getitem__, words))]

    def __missing__(self, word: str) -> Sequence[int]:
        if word.isascii() and word.isprintable():
            in_bytes = word.replace(" ", LETTERS[32])
        else:
            in_bytes = word.encode().decode("latin-1").translate(LETTERS)
        found = self[word] = tuple([token.id for token in self.model.tokenize(in_bytes)])
        return found


def word_ids(backend: Any) -> WordIds | None:
    """The words of a tokenizer of the library tokenizers; None if they may not determine the ids of a text."""
    name = pre_tokenizer_name(_state(backend.pre_tokenizer))
    normalizer = _state(backend.normalizer).get("type")
    if name is None or normalizer not in (None, *CHANGES_NO_ASCII) or getattr(backend.model, "dropout", None):
        return None
    added = backend.get_added_tokens_decoder().values()
    if any(one.lstrip or one.rstrip or one.single_word or one.normalized for one in added):
        return None
    return WordIds(backend, PRE_TOKENIZERS[name])


def _state(part: Any) -> dict[str, Any]:
    """The settings of a part of a tokenizer; {} without it."""
    return {} if part is None else json.loads(part.__getstate__())
