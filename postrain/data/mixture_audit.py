"""The audit of several sources: the counts of all rows, and of each source with its share of the drawn rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from operator import mul

from postrain.data import audit as audits
from postrain.data.audit import Audit
from postrain.data.chat import Template
from postrain.data.data_options import Part
from postrain.data.interleave import shares
from postrain.data.mix_sources import MixSource, Replay
from postrain.data.mixture_inputs import parts_of
from postrain.data.preparation import Prepared
from postrain.data.preview import PreviewRow
from postrain.data.record_reader import RowCounts
from postrain.data.schedule import DataSpec, Stream, TrainBatches
from postrain.data.settings import DataSettings
from postrain.data.source_audit import SourceAudit
from postrain.data.token_counts import TokenCounts

PREVIEW_ROWS = 2
"""Rows of each source whose loss mask is in the report."""


def joint_audit(
    settings: DataSettings, template: Template, found: Prepared, counts: Sequence[RowCounts], tokens: TokenCounts
) -> Audit:
    """The audit of the joined rows `found`, without the shares of the sources in a run (`of_run`)."""
    each = [one.audit for one in found.sources]
    total = each[0]
    gold = [record.columns.get("gold") for record in found.records.held_out] if settings.gold else []
    held_out = [item for one in found.held_out for item in one.items]
    counted = audits.count(found.train, held_out, template, tokens, gold=gold)
    names = [one.name for one in found.sources]
    return replace(
        total,
        source=total.source if len(each) == 1 else f"mixture of {', '.join(names)}",
        rows_read=sum(one.rows_read for one in each),
        rows_train=len(found.records.train),
        rows_eval=len(found.records.held_out),
        dropped=summed(one.dropped for one in counts),
        repaired=summed(one.repaired for one in counts),
        warned=summed(one.warned for one in counts),
        unused=summed(one.unused for one in counts),
        offered=tuple(dict.fromkeys(name for one in counts for name in one.offered)),
        contaminated={name: contaminated(name, size, counts) for name, (_, size) in total.contaminated.items()},
        cut=summed(one.cut for one in each),
        held_out={one.name: len(one.items) for one in found.held_out if one.name and one.in_total},
        **{**counted, "shown": tuple(row for one in found.sources for row in named(one.audit.shown, one.name))},
    )


def of_run(settings: DataSettings, spec: DataSpec, found: Prepared) -> Prepared:
    """Prepared sources with what depends on the weights and on the number of updates."""
    parts = [*parts_of(settings, spec).values()]
    sources = [one.audit for one in found.sources]
    ends = [*accumulate(one.items for one in sources)]
    of_rows = rates(settings, parts, sources) if len(sources) > 1 else [1.0]
    streams = tuple(
        Stream(end - one.items, one.items, rate) for one, end, rate in zip(sources, ends, of_rows, strict=True)
    )
    found = replace(found, streams=streams if len(streams) > 1 else ())
    shown = {}
    for one, stream in zip(found.sources, streams, strict=True):
        first = found.train[stream.start : stream.start + min(settings.show_mask, stream.count)]
        samples = audits.show(first, found.template, settings.show_mask, one.offset)
        shown[one.name] = replace(one.audit, batch_size=spec.batch_size, samples=samples)
    audit = replace(
        found.audit,
        samples="",
        updates=spec.updates,
        batch_size=spec.batch_size,
        sources=source_audits(spec, found, shown),
    )
    return replace(found, audit=audit)


def rates(settings: DataSettings, parts: Sequence[Part], audits: Sequence[Audit]) -> list[float]:
    """The share of the items that each source contributes.

    Rates of rows are shares of rows; shares of tokens are divided by the mean tokens of a row. With the share r of
    replayed tokens in the loss, m of them in a replayed row and M in the mean of other rows, the rate of replayed
    rows is r M / (r M + (1 − r) m).
    """
    sizes = [one.tokens if settings.mix_by == "tokens" else one.items for one in audits]
    weights = [_weight(part, size) for part, size in zip(parts, sizes, strict=True)]
    mixed = shares(weights, settings.mix_temperature)
    if settings.mix_by == "tokens":
        mixed = [share * one.items / one.tokens if share else 0.0 for share, one in zip(mixed, audits, strict=True)]
    of_rows = [rate / sum(mixed) for rate in mixed]
    last = parts[-1]
    r = last.share if isinstance(last, Replay) else 0.0
    if not r:
        return of_rows
    means = [one.supervised / max(1, one.items) for one in audits]
    others = sum(map(mul, of_rows, means))
    replayed = r * others / (r * others + (1 - r) * means[-1])
    return [*(rate * (1 - replayed) for rate in of_rows[:-1]), replayed]


def _weight(part: Part, size: int) -> float:
    if isinstance(part, Replay):
        return 0.0
    given = part.weight if isinstance(part, MixSource) else None
    return float(size) if given is None else given


def named(rows: Sequence[PreviewRow], source: str) -> list[PreviewRow]:
    """The first rows of a source for the preview."""
    return [replace(row, source=source) for row in rows[:PREVIEW_ROWS]]


def summed(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sums of counts by name, without zeros."""
    return dict(+sum(map(Counter, counts), Counter[str]()))


def contaminated(name: str, size: int, counts: Sequence[RowCounts]) -> tuple[int, int]:
    """The number of a benchmark's prompts that occur in any source, and of all prompts."""
    return len(set().union(*(one.contaminated.get(name, set()) for one in counts))), size


def source_audits(spec: DataSpec, found: Prepared, sources: Mapping[str, Audit]) -> dict[str, SourceAudit]:
    """The sources of a mixture with the items that the run draws from each; {} for a single source."""
    if not found.streams:
        return {}
    schedule = TrainBatches(
        items=found.train, batch_size=spec.batch_size, updates=spec.updates, seed=spec.seed, streams=found.streams
    )
    drawn = dict(zip(sources, schedule.drawn(), strict=True))
    passes = {name: drawn[name] / max(1, one.items) for name, one in sources.items()}
    tokens = {name: one.tokens * passes[name] for name, one in sources.items()}
    supervised = {name: one.supervised * passes[name] for name, one in sources.items()}
    return {
        name: SourceAudit(
            audit=one,
            share=found.streams[number].rate,
            drawn=drawn[name],
            tokens=tokens[name] / max(1, sum(tokens.values())),
            supervised=supervised[name] / max(1, sum(supervised.values())),
        )
        for number, (name, one) in enumerate(sources.items())
    }
