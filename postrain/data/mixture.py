"""Prepares several sources, each on its own, and joins their items: data.mix, data.replay, several held-out files.

Rows are numbered consecutively over all sources. A held-out row whose prompt is in the training rows of any source is
dropped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from postrain.data.chat import Template
from postrain.data.decontaminate import Benchmark
from postrain.data.item_store import joined, stored
from postrain.data.kinds.text import Text
from postrain.data.mix_sources import Replay
from postrain.data.mixture_audit import joint_audit
from postrain.data.mixture_inputs import Input, read
from postrain.data.preparation import HeldOutSet, Preparation, Prepared, SourcePart, Store, alternating
from postrain.data.record_reader import OVERLAP, RowCounts, Split, drop_overlap
from postrain.data.records import Record
from postrain.data.schedule import DataSpec
from postrain.data.settings import DataSettings
from postrain.data.sources import read_held_out
from postrain.data.token_counts import TokenCounts
from postrain.errors import ConfigError

T = TypeVar("T")


@dataclass
class Mixture:
    """Several sources, to be prepared for a method."""

    settings: DataSettings
    spec: DataSpec
    template: Template
    benchmarks: Sequence[Benchmark]
    store: Store = stored
    """Keeps the training items of a source."""
    inputs: list[Input] = field(default_factory=list)
    """The sources, without the values of their rows."""
    last: int = -1
    """The largest row number."""
    digest: Any = field(default_factory=hashlib.sha256)
    """Of the training items."""

    def prepare(self) -> Prepared:
        """All rows as tokens, audited. Raises ConfigError for a source that cannot be used."""
        works, parts = self._read()
        prepared = [
            work.encoded(one.loaded, part if one.trained else replace(part, train=()))
            for (one, work), part in zip(self._with(works), parts, strict=True)
        ]
        for one, found in self._with(prepared):
            found.audit.check()
            if one.trained and not found.train:
                raise ConfigError(f"{one.key}: no training row is left; give it more rows, or leave it out")
        sets = [
            HeldOutSet(one.name, found.records.held_out, found.eval, in_total=not one.is_replay)
            for one, found in self._with(prepared)
            if self._holds_out(one)
        ]
        files = replace(self._preparation(self.inputs[0]), benchmarks=())
        sets = [*self._held_out_files(files, parts), *sets]
        return self._joined(prepared, sets, [*(work.counts for work in works), files.counts])

    def train_records(self) -> Sequence[Record]:
        """The training records of all sources."""
        _, parts = self._read()
        return tuple(record for one, part in self._with(parts) if one.trained for record in part.train)

    def _read(self) -> tuple[list[Preparation], list[Split]]:
        """The records of all sources."""
        works: list[Preparation] = []
        parts: list[Split] = []
        for one in read(self.settings, self.spec):
            shifted = one.shifted(self.last + 1)
            works.append(self._preparation(shifted))
            parts.append(self._split(shifted, works[-1]))
            self.last = shifted.last
            self.inputs.append(shifted.without_values())  # the records hold what is needed
        return works, self._without_overlap(parts, works)

    def _with(self, found: Sequence[T]) -> Iterator[tuple[Input, T]]:
        return zip(self.inputs, found, strict=True)

    def _preparation(self, one: Input) -> Preparation:
        settings = copy(self.settings)
        settings.columns = {**self.settings.columns, **one.part.columns}
        settings.prompt_template = one.part.prompt_template or self.settings.prompt_template
        if isinstance(one.part, Replay) and one.kind == Text.__name__:
            # Short blocks: a document of many more tokens than other rows would be in few batches.
            settings.pack, settings.max_length = True, min(one.part.max_length, self.spec.context)
        # A source has no passes of its own: the mixture determines how many of its rows are drawn.
        spec = replace(self.spec, kind=one.kind, updates=0)
        return Preparation(
            settings, spec, self.template, self.benchmarks, one.offset, store=self.store, digest=self.digest
        )

    def _split(self, one: Input, work: Preparation) -> Split:
        try:
            return work.split(one.loaded, hold_out=self._holds_out(one))
        except ConfigError as error:
            if not one.name:
                raise
            message = str(error).removeprefix("data: ").replace("data.eval_path", f"{one.key}.eval_path")
            raise ConfigError(f"{one.key}: {message}") from None

    # Held-out rows ------------------------------------------------------------------------------------------------

    def _holds_out(self, one: Input) -> bool:
        """Whether the held-out rows come from the source itself."""
        return not self.settings.eval_path or one.is_replay

    def _without_overlap(self, parts: Sequence[Split], works: Sequence[Preparation]) -> list[Split]:
        """Drops the held-out rows of a source whose prompts are in the training rows of another one."""
        held_out = {record.prompt_content() for part in parts for record in part.held_out}
        trained = [{text for record in part.train if (text := record.prompt_content()) in held_out} for part in parts]
        found = []
        for number, (one, part) in enumerate(self._with(parts)):
            others = set().union(*(texts for index, texts in enumerate(trained) if index != number))
            kept = tuple(record for record in part.held_out if record.prompt_content() not in others)
            if part.held_out and not kept:
                raise ConfigError(
                    f"{one.key}: every held-out row has a prompt that another source trains on; give other rows with "
                    "data.eval_path=FILE"
                )
            works[number].counts.dropped[OVERLAP] += len(part.held_out) - len(kept)
            found.append(replace(part, held_out=kept))
        return found

    def _held_out_files(self, work: Preparation, parts: Sequence[Split]) -> Iterator[HeldOutSet]:
        """The files of data.eval_path, without rows whose prompts are in training."""
        given = self.settings.eval_path
        files = {"": given} if isinstance(given, str) else given or {}
        offset = self.last + 1
        train = tuple(record for one, part in self._with(parts) if not one.is_replay for record in part.train)
        for name, path in files.items():
            table = read_held_out(path).shifted(offset)
            offset = table.last + 1
            split = drop_overlap(train, work.records(table), eval_rows=self.settings.eval_rows, source=table.name)
            work.counts.dropped.update(split.dropped)
            yield HeldOutSet(name, split.held_out, work.encode_held_out(split, table))

    def _joined(
        self, prepared: Sequence[Prepared], sets: Sequence[HeldOutSet], counts: Sequence[RowCounts]
    ) -> Prepared:
        records = Split(
            tuple(record for one in prepared for record in one.records.train),
            alternating([one.records for one in sets if one.in_total]),
            {},
        )
        found = Prepared(
            template=self.template,
            records=records,
            train=joined(one.train for one in prepared),
            eval=alternating([one.items for one in sets if one.in_total]),
            audit=prepared[0].audit,
            held_out=tuple(sets),
            sources=tuple(SourcePart(one.name or "data", part.audit, one.offset) for one, part in self._with(prepared)),
        )
        tokens = TokenCounts.joined(self.template, [one.tokens for one in prepared if one.tokens], self.digest)
        return replace(found, audit=joint_audit(self.settings, self.template, found, counts, tokens))
