"""Running text for continued pre-training: every token is in the loss.

Packing joins documents with the end token and cuts them into blocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from postrain.data.encode import Encoded, EncodedRow, Encoder
from postrain.data.kinds.prompt import EncodedPrompt
from postrain.data.layouts import Fields, row_format, text
from postrain.data.records import Record, encode_in_batches
from postrain.data.tokenizing import Encoding, finish_all

TEXT_CUT = "text cut on the right"
FIRST_SENTENCE = re.compile(r".+?[.!?](?=\s+\S)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Text(Record):
    """Running text."""

    text: str

    noun = "text"
    method = "pretrain"

    def content(self) -> tuple[str, ...]:
        return (self.text,)

    def completions(self) -> tuple[str, ...]:
        return (self.text,)

    def encoding(self, encoder: Encoder) -> Encoding[EncodedRow]:
        ids = yield from self._tokens(encoder)
        if len(ids) > encoder.max_length:
            encoder.cuts[TEXT_CUT] += 1
            ids = ids[: encoder.max_length]
        return _all_supervised(self.row, ids)

    @classmethod
    def encode_all(cls, records: Sequence[Self], encoder: Encoder) -> Iterator[Encoded]:
        return _packed(records, encoder) if encoder.pack else encode_in_batches(records, encoder)

    def encode_beginning(self, encoder: Encoder) -> EncodedPrompt:
        """The beginning of the text as a prompt to sample from."""
        prompt = beginning(self.text)
        return EncodedPrompt(self.row, encoder.cut_prompt(encoder.template.encode_text(prompt)), prompt, self.columns)

    def _tokens(self, encoder: Encoder) -> Encoding[Tensor]:
        ids = yield from encoder.template.text(self.text)
        return torch.cat([ids, encoder.eos()])


@row_format("text", needs=("text",), rank=50)
def parse(row: int, fields: Fields) -> Text:
    """A document from a column of text."""
    name, value = fields.needed("text")
    return Text(row=row, text="" if value is None else text(value, name))


def beginning(text: str) -> str:
    """The first sentence of a text, or the first half of a text with one sentence."""
    found = FIRST_SENTENCE.match(text)
    if found:
        return found.group()
    words = text.split(" ")
    return " ".join(words[: max(1, len(words) // 2)])


def _packed(records: Sequence[Text], encoder: Encoder) -> Iterator[EncodedRow]:
    """Blocks of max_length tokens, the last may be shorter. The row of a block is that of its first document."""
    pending = torch.empty(0, dtype=torch.long)
    first = 0
    documents = finish_all((record._tokens(encoder) for record in records), encoder.template.tokenize)
    for record, ids in zip(records, documents, strict=True):
        first = first if len(pending) else record.row
        pending = torch.cat([pending, ids])
        while len(pending) >= encoder.max_length:
            yield _all_supervised(first, pending[: encoder.max_length])
            pending, first = pending[encoder.max_length :], record.row
    if len(pending) > 1:
        yield _all_supervised(first, pending)


def _all_supervised(row: int, ids: Tensor) -> EncodedRow:
    supervised = torch.ones(len(ids), dtype=torch.bool)
    supervised[0] = False
    return EncodedRow(row, ids, supervised)
