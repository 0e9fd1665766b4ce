"""Prepares several sources, each on its own, and joins their items: data.mix, data.replay, several held-out files.

Rows are numbered consecutively over all sources. A held-out row whose prompt is in the training rows of any source is
dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, zip_longest
from operator import mul
from typing import TypeVar

from postrain.data.audit import Audit
from postrain.data.chat import Template
from postrain.data.data_options import Part
from postrain.data.decontaminate import Benchmark
from postrain.data.formats import parse
from postrain.data.interleave import shares
from postrain.data.item_store import StoredItems
from postrain.data.kinds.demonstration import Demonstration
from postrain.data.kinds.text import Text
from postrain.data.mix_sources import MixSource, Replay
from postrain.data.mixture_audit import joint_audit
from postrain.data.preparation import HeldOutSet, Preparation, Prepared
from postrain.data.record_reader import OVERLAP, RowCounts, Split, drop_overlap
from postrain.data.rendering import Mode
from postrain.data.schedule import DataSpec, Stream
from postrain.data.settings import DataSettings
from postrain.data.sources import Loaded, read_held_out
from postrain.errors import ConfigError

T = TypeVar("T")
REPLAY = "replay"
"""The name of the held-out rows of data.replay."""
WITH_REPLAY = (Demonstration.__name__, Text.__name__)
"""The kinds of record into whose batches running text can be mixed."""
MakeTemplate = Callable[[Mode], Template]


@dataclass(frozen=True)
class Input:
    """One source of training rows."""

    key: str
    """The config key for messages."""
    name: str
    """The name in metrics; empty for the only source."""
    part: Part
    loaded: Loaded
    kind: str
    """Kind of its records."""
    offset: int = 0
    """Added to its row numbers."""

    @property
    def is_replay(self) -> bool:
        """Whether it is the source of data.replay."""
        return isinstance(self.part, Replay)

    @cached_property
    def is_text(self) -> bool:
        """Whether it holds running text."""
        return isinstance(next(iter(parse(self.loaded.train.head(1), {}).records), None), Text)

    @property
    def weight(self) -> float | None:
        """Its weight in data.mix; None for its size."""
        return self.part.weight if isinstance(self.part, MixSource) else None

    @property
    def trained(self) -> bool:
        """Whether its rows are trained on, not only evaluated."""
        return self.part.share > 0 if isinstance(self.part, Replay) else self.weight != 0

    @property
    def last(self) -> int:
        """The largest row number."""
        return max(table.last for table in (self.loaded.train, self.loaded.held_out) if table)


def prepare_sources(
    settings: DataSettings, spec: DataSpec, make_template: MakeTemplate, benchmarks: Sequence[Benchmark]
) -> Prepared:
    """Prepares all sources. Raises ConfigError for one that cannot be used."""
    check_settings(settings)
    inputs = numbered([*read(settings, spec)])
    template = make_template(common_template(inputs))
    return Mixture(settings, spec, template, benchmarks, inputs).prepare()


def check_settings(settings: DataSettings) -> None:
    """Raises ConfigError for weights that sum to 0, and for two sources of one name."""
    if settings.mix and all(source.weight == 0 for source in settings.mix.values()):
        raise ConfigError("data.mix: the weights sum to 0; give at least one source a weight above 0")
    if settings.replay and REPLAY in settings.mix:
        raise ConfigError(
            f"data.mix.{REPLAY}: the name of data.replay; choose another name: data.mix={{NAME: {{path: FILE}}}}"
        )


def read(settings: DataSettings, spec: DataSpec) -> Iterator[Input]:
    """Reads the rows of all sources."""
    if not settings.mix:
        yield Input("data", "", Part(), settings.load_rows(), spec.kind)
    for name, part in settings.mix.items():
        yield _input(f"data.mix.{name}", name, part, settings, spec.kind)
    # Prepared for an evaluation, data has no updates; replayed rows are only trained on.
    if settings.replay is not None and spec.updates:
        if spec.kind not in WITH_REPLAY:
            raise ConfigError(
                f"data.replay: this method trains on {spec.kind} records, which running text cannot be mixed with; "
                "leave it out, or use method=sft or method=pretrain"
            )
        one = _input("data.replay", REPLAY, settings.replay, settings, spec.kind)
        yield replace(one, kind=Text.__name__ if one.is_text else spec.kind)


def _input(key: str, name: str, part: Part, settings: DataSettings, kind: str) -> Input:
    loaded = part.load(key, eval_rows=settings.eval_rows)
    if not loaded.train.rows:
        raise ConfigError(f"{key}: {loaded.train.name} is empty; expected at least one row")
    limited = replace(loaded, train=loaded.train.head(part.max_rows or settings.max_rows))
    found = Input(key, name, part, limited, kind)
    if isinstance(part, MixSource) and kind == Demonstration.__name__ and found.is_text:
        raise ConfigError(f"{key}: {loaded.train.name} holds running text; mix it in with data.replay={part.path}")
    return found


def numbered(inputs: Sequence[Input]) -> list[Input]:
    """The sources with consecutive row numbers."""
    offset, found = 0, []
    for one in inputs:
        train, held_out = one.loaded.train, one.loaded.held_out
        shifted = replace(one.loaded, train=train.shifted(offset), held_out=held_out and held_out.shifted(offset))
        found.append(replace(one, loaded=shifted, offset=offset) if offset else one)
        offset = found[-1].last + 1
    return found


def common_template(inputs: Sequence[Input]) -> Mode:
    """The chat template that the sources require; auto if none requires one."""
    found: list[Mode] = [one.loaded.template for one in inputs if one.loaded.template != "auto"]
    return found[0] if found else "auto"


def alternating(parts: Sequence[Sequence[T]]) -> tuple[T, ...]:
    """The first item of each part, then the second ones: the beginning represents all parts."""
    return tuple(item for items in zip_longest(*parts) for item in items if item is not None)


@dataclass(frozen=True)
class Mixture:
    """Several sources, to be prepared for a method."""

    settings: DataSettings
    spec: DataSpec
    template: Template
    benchmarks: Sequence[Benchmark]
    inputs: Sequence[Input]

    def prepare(self) -> Prepared:
        """All rows as tokens, audited."""
        works = [self._preparation(one) for one in self.inputs]
        parts = self._without_overlap([self._split(one, work) for one, work in self._with(works)], works)
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
        return Preparation(settings, spec, self.template, self.benchmarks, one.offset)

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
        offset = 1 + max(one.last for one in self.inputs)
        train = tuple(record for one, part in self._with(parts) if not one.is_replay for record in part.train)
        for name, path in files.items():
            table = read_held_out(path).shifted(offset)
            offset = table.last + 1
            split = drop_overlap(train, work.records(table), eval_rows=self.settings.eval_rows, source=table.name)
            work.counts.dropped.update(split.dropped)
            yield HeldOutSet(name, split.held_out, work.encode_held_out(split, table.name))

    # The mixture --------------------------------------------------------------------------------------------------

    def _rates(self, audits: Sequence[Audit]) -> list[float]:
        """The share of the items that each source contributes.

        Rates of rows are shares of rows; shares of tokens are divided by the mean tokens of a row. With the share r of
        replayed tokens in the loss, m of them in a replayed row and M in the mean of other rows, the rate of replayed
        rows is r M / (r M + (1 − r) m).
        """
        sizes = [one.tokens if self.settings.mix_by == "tokens" else one.items for one in audits]
        weights = [
            0.0 if one.is_replay else float(size) if one.weight is None else one.weight
            for one, size in self._with(sizes)
        ]
        mixed = shares(weights, self.settings.mix_temperature)
        if self.settings.mix_by == "tokens":
            mixed = [share * one.items / one.tokens if share else 0.0 for share, one in zip(mixed, audits, strict=True)]
        rates = [rate / sum(mixed) for rate in mixed]
        last = self.inputs[-1].part
        r = last.share if isinstance(last, Replay) else 0.0
        if not r:
            return rates
        means = [one.supervised / max(1, one.items) for one in audits]
        others = sum(map(mul, rates, means))
        replayed = r * others / (r * others + (1 - r) * means[-1])
        return [*(rate * (1 - replayed) for rate in rates[:-1]), replayed]

    def _streams(self, audits: Sequence[Audit]) -> tuple[Stream, ...]:
        """The sources with their rates; empty if there is only one."""
        if len(audits) == 1:
            return ()
        ends = accumulate(one.items for one in audits)
        return tuple(
            Stream(end - one.items, one.items, rate)
            for one, end, rate in zip(audits, ends, self._rates(audits), strict=True)
        )

    def _joined(
        self, prepared: Sequence[Prepared], sets: Sequence[HeldOutSet], counts: Sequence[RowCounts]
    ) -> Prepared:
        train = StoredItems([one.train for one in prepared])
        held_out = alternating([one.items for one in sets if one.in_total])
        records = Split(
            tuple(record for one in prepared for record in one.records.train),
            alternating([one.records for one in sets if one.in_total]),
            {},
        )
        found = [one.audit for one in prepared]
        joined = Prepared(self.template, records, train, held_out, found[0], self._streams(found), tuple(sets))
        sources = dict(zip([one.name or "data" for one in self.inputs], found, strict=True))
        return replace(joined, audit=joint_audit(self.settings, self.spec, self.template, joined, sources, counts))
