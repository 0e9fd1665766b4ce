"""A new record kind needs one file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from postrain.data.encode import Encoded, EncodedRow, Encoder, collate
from postrain.data.formats import parse
from postrain.data.kinds.prompt import Prompt
from postrain.data.layouts import FORMATS, Fields, number, row_format, text
from postrain.data.records import CONVERSIONS, KINDS, Record, conversion, convert, encode
from postrain.data.token_counts import TokenCounts
from postrain.data.tokenizing import Encoding
from postrain.types import Batch, Rows
from tests.data.helpers import chat, table
from tests.data.test_encode import build_encoder


@pytest.fixture(autouse=True)
def _unregister_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[tuple[dict[Any, Any], Any]] = [(KINDS, "Essay"), (FORMATS, "essay"), (CONVERSIONS, ("Essay", "Prompt"))]
    for registry, name in names:
        # monkeypatch removes the name after the test, also if the test registers it.
        monkeypatch.setitem(registry, name, None)
        registry.pop(name)


def test_registered_kind_with_a_new_column_passes_the_whole_pipeline() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Essay(Record):
        body: str
        grade: float

        def content(self) -> tuple[str, ...]:
            return ("", self.body)

        def encoding(self, encoder: Encoder) -> Encoding[Encoded]:
            (body,) = yield from encoder.answers(self.row, chat("w"), (self.body,))
            return EncodedEssay(self.row, body, self.grade)

    @dataclass(frozen=True)
    class EncodedEssay(Encoded):
        body: EncodedRow
        grade: float

        @classmethod
        def collate(cls, items: Sequence[Any]) -> Batch:
            return EncodedRow.collate([item.body for item in items])

        def token_rows(self) -> tuple[EncodedRow, ...]:
            return (self.body,)

    @row_format("essay", needs=("essay", "grade"), rank=5)
    def build(row: int, fields: Fields) -> Essay:
        (name, body), (_, grade) = fields.needed("essay"), fields.needed("grade")
        return Essay(row=row, body=text(body, name), grade=number(grade, "grade"))

    @conversion(Essay, Prompt)
    def as_prompt(record: Essay) -> tuple[Prompt, ...]:
        return (Prompt(row=record.row, prompt=chat("w")),)

    found = parse(table([{"essay": "xzq", "grade": 2}]), {})
    encoder = build_encoder()
    items = encode(found.records, encoder)
    batch = collate(items)
    assert isinstance(batch, Rows)
    assert encoder.template.decode(batch.ids[0][batch.supervised[0]]) == "xzq"
    counts = TokenCounts(encoder.template)
    assert (len([*counts.counted(items)]), counts.fields()["supervised"]) == (len(items), 4)
    assert convert(found.records, "Prompt", source="rows").records == (
        Prompt(row=found.records[0].row, prompt=chat("w")),
    )
