"""A few rows as they are learned from: stretches of text with the use that training makes of them.

For the console (`data.show_mask`) and, shortened, for the manifest, from which the report shows them. Stretches are
decoded in one piece: tokens decoded one by one lose their spaces and break letters of several bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

from postrain.data.chat import Template
from postrain.data.encode import Encoded, EncodedPair, EncodedPrompt, EncodedRow, EncodedSteps, token_rows

Use = Literal["read", "learned", "right", "wrong"]
"""Read only; learned; of a chain, the token at which a right or a wrong step is judged."""
MOST_LETTERS, MOST_STRETCHES = 600, 24


@dataclass(frozen=True)
class Stretch:
    """Tokens next to each other with the same use."""

    text: str
    """Special tokens written out."""
    use: Use


@dataclass(frozen=True)
class ShownRow:
    """One row of tokens."""

    row: int
    """Its number in the source."""
    role: str
    """chosen or rejected; empty for a row that stands alone."""
    stretches: tuple[Stretch, ...]

    def shortened(self) -> ShownRow:
        """Of a size that a manifest can keep."""
        kept = tuple(replace(stretch, text=_shortened(stretch.text)) for stretch in self.stretches[:MOST_STRETCHES])
        return replace(self, stretches=kept)


def shown_rows(items: Sequence[Encoded], template: Template) -> Iterator[ShownRow]:
    """The rows of the items, a pair's two after each other."""
    for item in items:
        roles = ("chosen", "rejected") if isinstance(item, EncodedPair) else ("",)
        for row, role in zip(token_rows(item), roles, strict=False):
            yield ShownRow(row.row, role, _stretches(row.ids.tolist(), _uses(item, row), template))
        if isinstance(item, EncodedPrompt):
            yield ShownRow(item.row, "", (Stretch(template.tokenizer.decode(item.ids), "read"),))


def _stretches(ids: Sequence[int], uses: Sequence[Use], template: Template) -> tuple[Stretch, ...]:
    found, start = [], 0
    for use, group in groupby(uses):
        end = start + len(list(group))
        found.append(Stretch(template.tokenizer.decode(ids[start:end]), use))
        start = end
    return tuple(found)


def _uses(item: Encoded, row: EncodedRow) -> list[Use]:
    if not isinstance(item, EncodedSteps):
        return ["learned" if learned else "read" for learned in row.supervised.tolist()]
    labels = iter(item.labels)
    # A step is judged at its last token, the one before the marked one.
    read = row.supervised.roll(-1).tolist()
    return [("right" if next(labels) else "wrong") if here else "read" for here in read]


def _shortened(text: str) -> str:
    half = MOST_LETTERS // 2
    return text if len(text) <= MOST_LETTERS else f"{text[:half]} […] {text[-half:]}"
