"""From the rows of a table to the records that a method learns from, with an account of everything left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from postrain.data.encode import Encoded, EncodedPair, EncodedSteps, LossOn
from postrain.data.formats import parse
from postrain.data.quality import Quality, sane
from postrain.data.readers import Table
from postrain.data.records import Demonstration, Prompt, Record, lessons
from postrain.data.views import convert
from postrain.types import ConfigError

NOT_LEARNED = "answer of weight 0"


@dataclass(frozen=True)
class Account:
    """What has become of rows, columns and fields, by name; filled while tables are read."""

    dropped: Counter[str] = field(default_factory=Counter)
    """Rows that could not be used, by reason."""
    unused: Counter[str] = field(default_factory=Counter)
    """Rows with a column, or a field of a message, that nothing is made of."""
    repaired: Counter[str] = field(default_factory=Counter)
    """Rows that have been changed before use."""
    offered: dict[str, None] = field(default_factory=dict)
    """Columns of prompts, which rewards may read."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the rows of a run's tables become records."""

    kind: str
    """The kind of record that the method learns from."""
    columns: Mapping[str, str | None]
    """`data.columns`."""
    quality: Quality
    loss_on: LossOn
    known: frozenset[str]
    """Columns that something else than the method reads, such as gold."""

    def records(self, table: Table, account: Account) -> tuple[Record, ...]:
        """The records of a table. Raises ConfigError where none is left."""
        parsed = parse(table, self.columns)
        seen = convert(parsed.records, self.kind, source=table.name)
        learned = self._learned(seen.records, account)
        sound = sane(learned, self.quality, table.where)
        for counts in (parsed.dropped, seen.dropped, sound.dropped):
            account.dropped.update(counts)
        if self.kind == Prompt.__name__:
            account.offered.update(dict.fromkeys(name for record in sound.records for name in record.columns))
        for counts in (parsed.unused, seen.unused):
            read = {*self.known, *account.offered}
            account.unused.update({name: rows for name, rows in counts.items() if name not in read})
        account.repaired.update(parsed.repaired)
        if not sound.records:
            raise ConfigError(f"{table.name}: no row can be used: {reasons(account.dropped)}")
        return sound.records

    def _learned(self, records: tuple[Record, ...], account: Account) -> tuple[Record, ...]:
        """Without conversations whose learned answers all have weight 0."""
        last_only = self.loss_on == "completion"
        kept = tuple(one for one in records if not isinstance(one, Demonstration) or lessons(one, last_only=last_only))
        if len(kept) < len(records):
            account.dropped[NOT_LEARNED] += len(records) - len(kept)
        return kept


def reasons(dropped: Mapping[str, int]) -> str:
    """Why rows were dropped, in words."""
    return ", ".join(f"{number} {reason}" for reason, number in dropped.items() if number) or "there are none"


def learnable(items: tuple[Encoded, ...], dropped: Counter[str], source: str) -> tuple[Encoded, ...]:
    """Without what cutting has left nothing to learn from."""
    reasons = [lost(item) for item in items]
    dropped.update(reason for reason in reasons if reason)
    if items and all(reasons):
        raise ConfigError(f"{source}: {reasons[0]}, in every row; raise data.max_length")
    return tuple(item for item, reason in zip(items, reasons, strict=True) if not reason)


def lost(item: Encoded) -> str | None:
    """Why there is nothing to learn from an item, as where the sides of a pair differ only beyond the cut."""
    if isinstance(item, EncodedPair) and torch.equal(item.chosen.ids, item.rejected.ids):
        return "chosen equals rejected once cut"
    return "first step too long" if isinstance(item, EncodedSteps) and not item.labels else None
