"""The first training rows with the use of each token, for the console and the report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from postrain.data.chat import Template
from postrain.data.encode import Encoded, TokenUse
from postrain.formatting import without_middle

MAX_PREVIEW_CHARACTERS, MAX_PREVIEW_STRETCHES = 600, 24


@dataclass(frozen=True)
class Stretch:
    """Adjacent tokens with the same use."""

    text: str
    """Decoded tokens, including special tokens."""
    use: TokenUse


@dataclass(frozen=True)
class PreviewRow:
    """One row of tokens."""

    row: int
    """Number of the row in the source."""
    role: str
    """chosen or rejected; empty for a single row."""
    stretches: tuple[Stretch, ...]
    source: str = ""
    """Name of the source in a mixture."""

    def shortened(self) -> PreviewRow:
        """A copy with limited text for the manifest."""
        shown = self.stretches[:MAX_PREVIEW_STRETCHES]
        kept = tuple(replace(one, text=without_middle(one.text, MAX_PREVIEW_CHARACTERS)) for one in shown)
        return replace(self, stretches=kept)


def preview(items: Sequence[Encoded], template: Template, offset: int = 0) -> Iterator[PreviewRow]:
    """The token rows of the items in order; a pair has two. `offset` is subtracted from their numbers."""
    for item in items:
        for role, ids, uses in item.token_uses():
            yield PreviewRow(item.row - offset, role, _stretches(ids.tolist(), uses, template))


def _stretches(ids: Sequence[int], uses: Sequence[TokenUse], template: Template) -> tuple[Stretch, ...]:
    """Groups adjacent tokens by use and decodes each group as a whole, which keeps spaces and multi-byte characters."""
    found, start = [], 0
    for use, group in groupby(uses):
        end = start + len(list(group))
        found.append(Stretch(template.tokenizer.decode(ids[start:end]), use))
        start = end
    return tuple(found)
