"""Tokenizes the texts of many rows in one call, because tokenizers work in parallel and a call has a fixed cost.

The encoding of a row is a generator: it renders its texts, yields them, receives their token ids and returns the row.
`finish` runs one such generator, `finish_all` runs many at once. Both run the same code, so the rows are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

from transformers import TokenizersBackend

from postrain.data.word_ids import WordIds, word_ids
from postrain.models.tokenizer_bytes import SPACE

CHUNK = 1024
"""Rows per call of the tokenizer."""
MANY = 2000
"""Texts after which the ids of words are kept."""

Piece = tuple[str, bool]
"""A text, and True if it begins a row."""
Tokenize = Callable[[Sequence[Piece]], list[list[int]]]
T = TypeVar("T")
Encoding = Generator[Sequence[Piece], list[list[int]], T]
"""Yields pieces, receives the token ids of each, and returns a row."""


def finish(encoding: Encoding[T], tokenize: Tokenize) -> T:
    """The row of one encoding."""
    (row,) = finish_all([encoding], tokenize)
    return row


def finish_all(encodings: Iterable[Encoding[T]], tokenize: Tokenize) -> Iterator[T]:
    """The rows of many encodings, in order."""
    rest = iter(encodings)
    while chunk := list(islice(rest, CHUNK)):
        yield from _finish_chunk(chunk, tokenize)


def _finish_chunk(encodings: Sequence[Encoding[T]], tokenize: Tokenize) -> list[T]:
    rows: list[Any] = [None] * len(encodings)
    received: dict[int, list[list[int]] | None] = dict.fromkeys(range(len(encodings)))
    while received:
        asked: dict[int, Sequence[Piece]] = {}
        for place, ids in received.items():
            encoding = encodings[place]
            try:
                asked[place] = next(encoding) if ids is None else encoding.send(ids)
            except StopIteration as finished:
                rows[place] = finished.value
        found = iter(tokenize([piece for pieces in asked.values() for piece in pieces]) if asked else [])
        received = {place: list(islice(found, len(pieces))) for place, pieces in asked.items()}
    return rows


class PieceTokenizer:
    """Ids of pieces of rows, without added special tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._call(["a"])  # switches truncation and padding of the backend off
        self._words: WordIds | None = None
        self._texts = 0
        # Tokenizers that prefix every text with a space must not do so within a row.
        self.lead = "\n" if tokenizer.tokenize("a")[0].startswith(SPACE) else ""

    def __call__(self, pieces: Sequence[Piece]) -> list[list[int]]:
        texts = [text if first else self.lead + text for text, first in pieces if text]
        found = iter(self._tokenized(texts) if texts else ())
        ids = [next(found) if text else [] for text, _ in pieces]
        if not self.lead:
            return ids
        skip = len(self._tokenized([self.lead])[0])
        return [part if first else part[skip:] for part, (_, first) in zip(ids, pieces, strict=True)]

    def _tokenized(self, texts: list[str]) -> list[list[int]]:
        backend = self._backend()
        if backend is None:
            return self._call(texts)
        if self._words is not None and not backend.encode_special_tokens:
            return [*map(self._words.of, texts)]
        ids = [found.ids for found in backend.encode_batch_fast(texts, add_special_tokens=False)]
        before, self._texts = self._texts, self._texts + len(texts)
        if before < MANY <= self._texts and (words := word_ids(backend)) is not None:
            self._words = words if [*map(words.of, texts)] == ids else None
        return ids

    def _backend(self) -> Any:
        """The tokenizer of the library tokenizers, if calling it gives the same ids; a third of the time is saved."""
        if getattr(type(self.tokenizer), "_encode_plus", None) is not TokenizersBackend._encode_plus:
            return None
        backend = self.tokenizer.backend_tokenizer
        as_called = backend.encode_special_tokens == self.tokenizer.split_special_tokens
        return backend if as_called and backend.truncation is None and backend.padding is None else None

    def _call(self, texts: list[str]) -> list[list[int]]:
        # verbose=False: encode.py truncates and counts texts longer than the context.
        return self.tokenizer(
            texts,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
