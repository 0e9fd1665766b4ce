"""Reads, splits, filters, encodes and audits the rows of a source, once, before weights are loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import zip_longest
from typing import Any, TypeVar

from postrain.data import audit as audits
from postrain.data.audit import Audit
from postrain.data.chat import Template
from postrain.data.decontaminate import Benchmark, decontaminate
from postrain.data.encode import Encoded, Encoder
from postrain.data.item_store import stored
from postrain.data.kinds import KINDS
from postrain.data.kinds.prompt import Prompt
from postrain.data.prompt_template import PromptTemplate
from postrain.data.quality import apply_filters
from postrain.data.readers import Table
from postrain.data.reading_progress import tracked
from postrain.data.record_reader import RecordReader, RowCounts, Split, drop_empty, drop_overlap, reasons, split
from postrain.data.records import Record, encode, encode_each
from postrain.data.refused_rows import drop_refused, located
from postrain.data.schedule import DataSpec, Stream
from postrain.data.settings import DataSettings
from postrain.data.sources import Loaded
from postrain.data.token_counts import TokenCounts
from postrain.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class HeldOutSet:
    """A part of the held-out rows."""

    name: str
    """Its name in metrics; empty for a part without metrics of its own."""
    records: tuple[Record, ...]
    items: Sequence[Encoded]
    in_total: bool = True
    """Whether the metrics of all held-out rows include it."""

    @cached_property
    def rows(self) -> frozenset[int]:
        """The numbers of its rows."""
        return frozenset(record.row for record in self.records)


@dataclass(frozen=True)
class SourcePart:
    """One of several sources."""

    name: str
    audit: Audit
    offset: int
    """Added to its row numbers."""


@dataclass(frozen=True)
class Prepared:
    """The data of a run."""

    template: Template
    records: Split
    train: Sequence[Encoded]
    eval: Sequence[Encoded]
    audit: Audit
    streams: tuple[Stream, ...] = ()
    """The sources of a mixture; empty for a single source."""
    held_out: tuple[HeldOutSet, ...] = ()
    """The parts of the held-out rows; empty for rows without parts."""
    columns: tuple[str, ...] | None = None
    """The columns that all training records have; None if they are read off the records."""
    tokens: TokenCounts | None = None
    """The counts of the training items of a single source."""
    sources: tuple[SourcePart, ...] = ()
    """The sources of several, without the shares of this run."""


def alternating(parts: Sequence[Sequence[T]]) -> tuple[T, ...]:
    """The first item of each part, then the second ones: the beginning represents all parts."""
    return tuple(item for items in zip_longest(*parts) for item in items if item is not None)


Store = Callable[[Iterable[Encoded]], Sequence[Encoded]]
"""Keeps many items."""


@dataclass(frozen=True)
class Preparation:
    """Prepares the rows of a source for a method. Raises ConfigError for data that cannot be trained on."""

    settings: DataSettings
    spec: DataSpec
    template: Template
    benchmarks: Sequence[Benchmark] = ()
    """Benchmarks whose prompts must not occur in training rows."""
    offset: int = 0
    """Added to the row numbers of the source."""
    store: Store = stored
    """Keeps the training items."""
    digest: Any = None
    """A hash that is updated with all training items, for several sources."""
    counts: RowCounts = field(default_factory=RowCounts)

    def prepare(self, loaded: Loaded) -> Prepared:
        """All rows as tokens, audited."""
        parts = self.split(loaded)
        loaded = loaded.without_values()  # the records hold what is needed
        found = self.encoded(loaded, parts)
        found.audit.check()
        return found

    def encoded(self, loaded: Loaded, parts: Split) -> Prepared:
        """The records of `parts` as tokens, with their audit; `loaded` are the rows that they were read from."""
        encoder = self.encoder(self._row_length())
        dropped, name = self.counts.dropped, loaded.train.name
        items = encode_each(self._with_reward_columns(tuple(parts.train)), encoder)
        items = tracked(items, "tokenizing rows", 0 if self.settings.pack else len(parts.train))
        counts = TokenCounts(self.template, self.digest)
        with located(loaded.train):
            train = self.store(counts.counted(drop_empty(items, dropped, name)))
        held_out = self.encode_held_out(parts, loaded.held_out or loaded.train, encoder)
        audit = self._audit(loaded, parts, (train, held_out), encoder, counts)
        return Prepared(self.template, parts, train, held_out, audit, tokens=counts)

    def split(self, loaded: Loaded, *, hold_out: bool = True) -> Split:
        """The records of both parts; without `hold_out` all are training records.

        `counts` gets the dropped rows and the unused columns.
        """
        settings, counts = self.settings, self.counts
        dropped, name, seed = counts.dropped, loaded.train.name, self.spec.seed
        train = self.records(loaded.train)
        if not hold_out:
            parts = Split(train, (), {})
        elif loaded.held_out is None:
            parts = split(train, fraction=settings.eval_fraction, eval_rows=settings.eval_rows, seed=seed, source=name)
        else:
            held_out = self.records(loaded.held_out)
            parts = drop_overlap(train, held_out, eval_rows=settings.eval_rows, source=loaded.held_out.name)
        dropped.update(parts.dropped)
        with located(loaded.train):
            return replace(parts, train=self._filtered(tuple(parts.train), name))

    def records(self, table: Table) -> tuple[Record, ...]:
        """The records of a table. `counts` gets the dropped rows and the unused columns."""
        settings = self.settings
        reading = RecordReader(
            kind=self.spec.kind,
            columns=settings.columns,
            prompt_template=PromptTemplate(settings.prompt_template) if settings.prompt_template else None,
            quality=settings.quality,
            loss_on=settings.loss_on,
            known=frozenset(self._used_columns()),
            joiner=settings.steps.joiner,
            ends=self.template.ends,
            eos=self.template.tokenizer.eos_token,
        )
        return drop_refused(reading.records(table, self.counts), self.template, table, self.counts.dropped)

    def _filtered(self, records: tuple[Record, ...], name: str) -> tuple[Record, ...]:
        """The training records that pass all filters. Raises ConfigError if none is left."""
        dropped = self.counts.dropped
        clean = decontaminate(records, self.benchmarks)
        dropped.update(clean.dropped)
        for benchmark, prompts in clean.prompts.items():
            self.counts.contaminated.setdefault(benchmark, set()).update(prompts)
        filtered = apply_filters(clean.records, self.settings.quality, seed=self.spec.seed)
        dropped.update(filtered.dropped)
        if not filtered.records:
            raise ConfigError(f"{name}: no training row is left: {reasons(dropped)}; loosen data.quality")
        return filtered.records

    def _used_columns(self) -> set[str]:
        """Columns used outside of records; not reported as unused."""
        used = {
            "margin" if self.spec.use_margin else None,
            None if self.settings.gold is None else "gold",
            self.settings.quality.balance,
        }
        return {name for name in used if name is not None}

    def encode_held_out(self, parts: Split, table: Table, encoder: Encoder | None = None) -> tuple[Encoded, ...]:
        """Encodes the held-out rows, which are those of `table`, together with the training rows that they need, which
        are then dropped."""
        encoder = encoder or self.encoder(self._row_length())
        borrowed = KINDS[self.spec.kind].borrowed(parts.held_out, parts.train)
        with located(table):
            items = encode(self._with_reward_columns((*parts.held_out, *borrowed)), encoder)[: len(parts.held_out)]
        return tuple(drop_empty(items, self.counts.dropped, table.name))

    def _with_reward_columns(self, records: tuple[Record, ...]) -> tuple[Record, ...]:
        return KINDS[self.spec.kind].with_reward_columns(records)

    def _row_length(self) -> int:
        """Maximum tokens per training row; for prompts, minus the tokens to sample."""
        context = self.spec.context
        if self.settings.max_length is not None and self.settings.max_length > context:
            raise ConfigError(
                f"data.max_length={self.settings.max_length}: the model has a context of {context}; give at most that"
            )
        longest = self.prompt_length() if issubclass(KINDS[self.spec.kind], Prompt) else context
        return min(longest, self.settings.max_length or longest)

    def prompt_length(self) -> int:
        """Maximum tokens of a prompt for sampling."""
        room = self.spec.context - self.spec.completion_tokens
        if room < 1:
            raise ConfigError(
                f"rollout.max_new_tokens={self.spec.completion_tokens} fills the model's context of "
                f"{self.spec.context} tokens (with environment.max_observation_tokens) and leaves none for a prompt; "
                "give fewer"
            )
        return room

    def encoder(self, max_length: int) -> Encoder:
        return Encoder(
            template=self.template,
            loss_on=self.settings.loss_on,
            max_length=max_length,
            max_prompt_length=self.settings.max_prompt_length or max_length,
            pack=self.settings.pack,
            layout=self.settings.steps,
        )

    def _contaminated(self) -> dict[str, tuple[int, int]]:
        found = self.counts.contaminated
        return {one.name: (len(found.get(one.name, ())), one.size) for one in self.benchmarks}

    def _audit(
        self,
        loaded: Loaded,
        parts: Split,
        items: tuple[Sequence[Encoded], Sequence[Encoded]],
        encoder: Encoder,
        counts: TokenCounts,
    ) -> Audit:
        train, held_out = items
        return Audit(
            source=loaded.train.name,
            kind=self.spec.kind,
            template=self.template.name,
            rows_read=len(loaded.train.rows) + (len(loaded.held_out.rows) if loaded.held_out else 0),
            rows_train=len(parts.train),
            rows_eval=len(parts.held_out),
            dropped=dict(+self.counts.dropped),
            repaired=dict(+self.counts.repaired),
            warned=dict(+self.counts.warned),
            unused=dict(+self.counts.unused),
            offered=tuple(self.counts.offered),
            contaminated=self._contaminated(),
            cut=dict(encoder.cuts),
            samples=audits.show(train, self.template, self.settings.show_mask, self.offset),
            packed=self.settings.pack,
            updates=self.spec.updates,
            batch_size=self.spec.batch_size,
            **audits.count(
                train,
                held_out,
                self.template,
                counts,
                gold=[one.columns.get("gold") for one in parts.held_out] if self.settings.gold else [],
                offset=self.offset,
            ),
        )
