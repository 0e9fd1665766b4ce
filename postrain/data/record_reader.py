"""From the rows of a table to the records that a method learns from and those held out, which share no prompt.

Everything left out is counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from postrain.data.encode import Encoded, LossOn
from postrain.data.formats import parse
from postrain.data.kinds.prompt import Prompt
from postrain.data.quality import Quality, drop_invalid
from postrain.data.readers import Table
from postrain.data.records import Record, convert
from postrain.errors import ConfigError
from postrain.seeds import derive_seed

NOT_LEARNED = "answer of weight 0"
OVERLAP = "held-out prompt also in training"
SURPLUS = "held out beyond data.eval_rows"


@dataclass(frozen=True)
class RowCounts:
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
class RecordReader:
    """How the rows of a run's tables become records."""

    kind: str
    """The kind of record that the method learns from."""
    columns: Mapping[str, str | None]
    """`data.columns`."""
    quality: Quality
    loss_on: LossOn
    known: frozenset[str]
    """Columns that something else than the method reads, such as gold."""

    def records(self, table: Table, counts: RowCounts) -> tuple[Record, ...]:
        """The records of a table. Raises ConfigError where none is left."""
        parsed = parse(table, self.columns)
        seen = convert(parsed.records, self.kind, source=table.name)
        learned = self._learned(seen.records, counts)
        sound = drop_invalid(learned, self.quality, table.where)
        for dropped in (parsed.dropped, seen.dropped, sound.dropped):
            counts.dropped.update(dropped)
        if self.kind == Prompt.__name__:
            counts.offered.update(dict.fromkeys(name for record in sound.records for name in record.columns))
        read = {*self.known, *counts.offered}
        for unused in (parsed.unused, seen.unused):
            counts.unused.update({name: rows for name, rows in unused.items() if name not in read})
        counts.repaired.update(parsed.repaired)
        if not sound.records:
            raise ConfigError(f"{table.name}: no row can be used: {reasons(counts.dropped)}")
        return sound.records

    def _learned(self, records: tuple[Record, ...], counts: RowCounts) -> tuple[Record, ...]:
        """Without conversations whose learned answers all have weight 0."""
        last_only = self.loss_on == "completion"
        kept = tuple(record for record in records if record.has_answer_in_loss(last_only=last_only))
        if len(kept) < len(records):
            counts.dropped[NOT_LEARNED] += len(records) - len(kept)
        return kept


def reasons(dropped: Mapping[str, int]) -> str:
    """Why rows were dropped, in words."""
    return ", ".join(f"{number} {reason}" for reason, number in dropped.items() if number) or "there are none"


def drop_empty(items: tuple[Encoded, ...], dropped: Counter[str], source: str) -> tuple[Encoded, ...]:
    """Without what cutting has left nothing to learn from."""
    reasons = [item.drop_reason() for item in items]
    dropped.update(reason for reason in reasons if reason)
    if items and all(reasons):
        raise ConfigError(f"{source}: {reasons[0]}, in every row; raise data.max_length")
    return tuple(item for item, reason in zip(items, reasons, strict=True) if not reason)


@dataclass(frozen=True)
class Split:
    """The two parts."""

    train: tuple[Record, ...]
    held_out: tuple[Record, ...]
    dropped: Mapping[str, int]
    """Held-out rows that are left out, by reason."""


def split(records: Sequence[Record], *, fraction: float, eval_rows: int, seed: int, source: str) -> Split:
    """Holds out a share of the prompts with all their rows, and at most `eval_rows` prompts."""
    prompts = sorted({record.prompt_content() for record in records})
    if len(prompts) < 2:
        raise ConfigError(
            f"{source}: {len(prompts)} different prompts are too few to hold one out; give held-out rows with "
            "data.eval_path=FILE"
        )
    wanted = min(math.ceil(fraction * len(prompts)), eval_rows, len(prompts) - 1)
    drawn = set(sorted(prompts, key=lambda prompt: derive_seed(seed, f"held out: {prompt}"))[:wanted])
    held_out = tuple(record for record in records if record.prompt_content() in drawn)
    train = tuple(record for record in records if record.prompt_content() not in drawn)
    return Split(train, held_out[:eval_rows], {SURPLUS: len(held_out[eval_rows:])})


def drop_overlap(train: Sequence[Record], held_out: Sequence[Record], *, eval_rows: int, source: str) -> Split:
    """Keeps the source's own held-out rows, those that training does not give away."""
    known = {record.prompt_content() for record in train}
    kept = tuple(record for record in held_out if record.prompt_content() not in known)
    if not kept:
        raise ConfigError(
            f"{source}: every held-out row has a prompt that is also in training, so there is nothing to evaluate on; "
            "give other rows with data.eval_path=FILE"
        )
    return Split(tuple(train), kept[:eval_rows], {OVERLAP: len(held_out) - len(kept), SURPLUS: len(kept[eval_rows:])})
