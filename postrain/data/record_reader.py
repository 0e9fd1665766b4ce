"""Converts tables to training and held-out records, which share no prompt. Dropped rows are counted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop

from postrain.data.encode import Encoded, LossOn
from postrain.data.end_tokens import REPEATED_END, without_end_tokens
from postrain.data.formats import parse
from postrain.data.kinds.prompt import Prompt
from postrain.data.kinds.steps import Steps
from postrain.data.prompt_template import PromptTemplate
from postrain.data.quality import Quality, drop_invalid
from postrain.data.readers import Table
from postrain.data.records import KINDS, Record, convert
from postrain.errors import ConfigError
from postrain.seeds import derive_seed

ZERO_WEIGHT_ANSWER = "answer of weight 0"
OVERLAP = "held-out prompt also in training"
SURPLUS = "held out beyond data.eval_rows"


@dataclass(frozen=True)
class RowCounts:
    """Counts for the audit, filled while tables are read."""

    dropped: Counter[str] = field(default_factory=Counter)
    """Number of dropped rows by reason."""
    unused: Counter[str] = field(default_factory=Counter)
    """Number of rows with an unused column or message field, by its name."""
    repaired: Counter[str] = field(default_factory=Counter)
    """Number of changed rows by the change."""
    warned: Counter[str] = field(default_factory=Counter)
    """Number of rows by what they should not have."""
    offered: dict[str, None] = field(default_factory=dict)
    """Columns of prompts for rewards: an ordered set."""
    contaminated: dict[str, set[int]] = field(default_factory=dict)
    """Numbers of the prompts of each benchmark that occur in training rows."""


@dataclass(frozen=True, kw_only=True)
class RecordReader:
    """Converts the rows of tables to records."""

    kind: str
    """The record kind that the method trains on."""
    columns: Mapping[str, str | None]
    """`data.columns`."""
    quality: Quality
    loss_on: LossOn
    prompt_template: PromptTemplate | None = None
    """Writes the prompt from other columns; None reads the prompt column."""
    known: frozenset[str]
    """Columns used outside of records, such as gold; not reported as unused."""
    joiner: str = "\n"
    """`data.steps.joiner`."""
    ends: tuple[str, ...] = ()
    """The end tokens of the template."""
    eos: str = ""
    """The end token of running text."""

    def records(self, table: Table, counts: RowCounts) -> tuple[Record, ...]:
        """The records of a table. Raises ConfigError if none is left."""
        parsed = parse(table, self.columns, self.prompt_template, if_empty=self.quality.empty)
        joined = tuple(replace(one, joiner=self.joiner) if isinstance(one, Steps) else one for one in parsed.records)
        converted = convert(self._without_end_tokens(joined, counts), self.kind, source=table.name)
        weighted = self._drop_zero_weight(converted.records, counts)
        valid = drop_invalid(weighted, self.quality, table.where)
        for dropped in (parsed.dropped, converted.dropped, valid.dropped):
            counts.dropped.update(dropped)
        if issubclass(KINDS[self.kind], Prompt):
            counts.offered.update(dict.fromkeys(name for record in valid.records for name in record.columns))
        used = {*self.known, *counts.offered}
        for unused in (parsed.unused, converted.unused):
            counts.unused.update({name: rows for name, rows in unused.items() if name not in used})
        counts.repaired.update(parsed.repaired)
        counts.warned.update(parsed.warned)
        if not valid.records:
            raise ConfigError(f"{table.name}: no row can be used: {reasons(counts.dropped)}")
        return valid.records

    def _without_end_tokens(self, records: tuple[Record, ...], counts: RowCounts) -> tuple[Record, ...]:
        if not self.ends:
            return records
        found = tuple(without_end_tokens(record, self.ends, self.eos) for record in records)
        if changed := sum(one is not other for one, other in zip(found, records, strict=True)):
            counts.repaired[REPEATED_END] += changed
        return found

    def _drop_zero_weight(self, records: tuple[Record, ...], counts: RowCounts) -> tuple[Record, ...]:
        """Drops records without an answer in the loss: those that loss_on selects all have weight 0."""
        last_only = self.loss_on == "completion"
        kept = tuple(record for record in records if record.has_answer_in_loss(last_only=last_only))
        if len(kept) < len(records):
            counts.dropped[ZERO_WEIGHT_ANSWER] += len(records) - len(kept)
        return kept


def reasons(dropped: Mapping[str, int]) -> str:
    """Formats counts by reason for a message."""
    return ", ".join(f"{number} {reason}" for reason, number in dropped.items() if number) or "there are none"


def drop_empty(items: Iterable[Encoded], dropped: Counter[str], source: str) -> Iterator[Encoded]:
    """Drops items that cannot be used after truncation. Raises ConfigError if none is left."""
    kept, first = 0, ""
    for item in items:
        if reason := item.drop_reason():
            dropped[reason] += 1
            first = first or reason
        else:
            kept += 1
            yield item
    if first and not kept:
        raise ConfigError(f"{source}: {first}, in every row; raise data.max_length")


@dataclass(frozen=True)
class Split:
    """Training and held-out records."""

    train: Sequence[Record]
    held_out: tuple[Record, ...]
    dropped: Mapping[str, int]
    """Number of dropped held-out rows by reason."""


def split(records: Sequence[Record], *, fraction: float, eval_rows: int, seed: int, source: str) -> Split:
    """Holds out a fraction of the prompts with all their rows, at most `eval_rows` prompts and rows.

    Conversations with the same opening are drawn together: one may continue another, or answer the same question.
    """
    prompts = {record.prompt_content() for record in records}
    if len(prompts) < 2:
        raise ConfigError(
            f"{source}: one prompt is too few to hold one out; give held-out rows with data.eval_path=FILE"
        )
    wanted = min(math.ceil(fraction * len(prompts)), eval_rows, len(prompts) - 1)
    drawn = _drawn({record.prompt_content(): record.opening() for record in records}, wanted, seed)
    held_out = tuple(record for record in records if record.prompt_content() in drawn)
    train = tuple(record for record in records if record.prompt_content() not in drawn)
    return Split(train, held_out[:eval_rows], {SURPLUS: len(held_out[eval_rows:])})


def _drawn(openings: Mapping[str, str], wanted: int, seed: int) -> set[str]:
    """At most `wanted` of the prompts; `openings` has the opening of each.

    Prompts are drawn by their opening, unless more prompts share it than are wanted: then it is an instruction that all
    conversations begin with, and not their question.
    """
    sizes = Counter(openings.values())
    groups: dict[str, list[str]] = {}
    for prompt, opening in openings.items():
        groups.setdefault(opening if sizes[opening] <= wanted else prompt, []).append(prompt)
    order = [(derive_seed(seed, f"held out: {name}"), name) for name in groups]
    heapify(order)
    drawn: set[str] = set()
    while order and len(drawn) < wanted:
        group = groups[heappop(order)[1]]
        if len(drawn) + len(group) <= wanted:
            drawn.update(group)
    return drawn


def drop_overlap(train: Sequence[Record], held_out: Sequence[Record], *, eval_rows: int, source: str) -> Split:
    """Drops held-out rows whose prompt is in the training rows. Raises ConfigError if none is left."""
    known = {record.prompt_content() for record in train}
    kept = tuple(record for record in held_out if record.prompt_content() not in known)
    if not kept:
        raise ConfigError(
            f"{source}: every held-out row has a prompt that is also in training, so there is nothing to evaluate on; "
            "give other rows with data.eval_path=FILE"
        )
    return Split(tuple(train), kept[:eval_rows], {OVERLAP: len(held_out) - len(kept), SURPLUS: len(kept[eval_rows:])})
