"""The audit of several sources: the counts of all rows, and of each source with its share of the drawn rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from postrain.data import audit as audits
from postrain.data.audit import Audit
from postrain.data.chat import Template
from postrain.data.preparation import Prepared
from postrain.data.preview import PreviewRow
from postrain.data.record_reader import RowCounts
from postrain.data.schedule import DataSpec, TrainBatches
from postrain.data.settings import DataSettings
from postrain.data.source_audit import SourceAudit

PREVIEW_ROWS = 2
"""Rows of each source whose loss mask is in the report."""


def joint_audit(
    settings: DataSettings,
    spec: DataSpec,
    template: Template,
    found: Prepared,
    sources: Mapping[str, Audit],
    counts: Sequence[RowCounts],
) -> Audit:
    """The audit of the joined rows `found`; `sources` are those of the sources by name."""
    each = [*sources.values()]
    total = each[0]
    gold = [record.columns.get("gold") for record in found.records.held_out] if settings.gold else []
    held_out = [item for one in found.held_out for item in one.items]
    counted = audits.count(found.train, held_out, template, gold=gold)
    return replace(
        total,
        source=total.source if len(each) == 1 else f"mixture of {', '.join(sources)}",
        rows_read=sum(one.rows_read for one in each),
        rows_train=len(found.records.train),
        rows_eval=len(found.records.held_out),
        dropped=summed(one.dropped for one in counts),
        repaired=summed(one.repaired for one in counts),
        unused=summed(one.unused for one in counts),
        offered=tuple(dict.fromkeys(name for one in counts for name in one.offered)),
        contaminated={name: contaminated(name, size, counts) for name, (_, size) in total.contaminated.items()},
        cut=summed(one.cut for one in each),
        samples="",
        updates=spec.updates,
        sources=source_audits(spec, found, sources),
        held_out={one.name: len(one.items) for one in found.held_out if one.name and one.in_total},
        **{**counted, "shown": tuple(row for name, one in sources.items() for row in named(one.shown, name))},
    )


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
