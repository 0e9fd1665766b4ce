"""A few rows as they are learned from: stretches of text with the use that training makes of them.

For the console (`data.show_mask`) and, shortened, for the manifest, from which the report shows them. Stretches are
decoded in one piece: tokens decoded one by one lose their spaces and break letters of several bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from postrain.data.chat import Template
from postrain.data.encode import Encoded, Use

MOST_LETTERS, MOST_STRETCHES = 600, 24


@dataclass(frozen=True)
class Stretch:
    """Tokens next to each other with the same use."""

    text: str
    """Special tokens written out."""
    use: Use


@dataclass(frozen=True)
class PreviewRow:
    """One row of tokens."""

    row: int
    """Its number in the source."""
    role: str
    """chosen or rejected; empty for a row that stands alone."""
    stretches: tuple[Stretch, ...]

    def shortened(self) -> PreviewRow:
        """Of a size that a manifest can keep."""
        kept = tuple(replace(stretch, text=_shortened(stretch.text)) for stretch in self.stretches[:MOST_STRETCHES])
        return replace(self, stretches=kept)


def preview(items: Sequence[Encoded], template: Template) -> Iterator[PreviewRow]:
    """The rows of the items, a pair's two after each other."""
    for item in items:
        for role, ids, uses in item.uses():
            yield PreviewRow(item.row, role, _stretches(ids.tolist(), uses, template))


def _stretches(ids: Sequence[int], uses: Sequence[Use], template: Template) -> tuple[Stretch, ...]:
    found, start = [], 0
    for use, group in groupby(uses):
        end = start + len(list(group))
        found.append(Stretch(template.tokenizer.decode(ids[start:end]), use))
        start = end
    return tuple(found)


def _shortened(text: str) -> str:
    half = MOST_LETTERS // 2
    return text if len(text) <= MOST_LETTERS else f"{text[:half]} […] {text[-half:]}"
