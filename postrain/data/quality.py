"""Filters for empty, contradictory, short, long, repetitive, duplicate and over-represented rows.

Each filter counts the rows that it drops. Empty completions and contradictory labels are also dropped from the held-out
rows. All other filters apply to training rows only, so evaluations do not depend on them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from postrain.config.extras import load
from postrain.data.layouts import Empty
from postrain.data.records import Record
from postrain.data.repetition import distinct_ngram_share
from postrain.errors import ConfigError, RowError
from postrain.seeds import generator
from postrain.types import Count, CountOrZero, Fraction

IfEmpty = Literal["drop", "error"]
PERMUTATIONS = 64
SHINGLE_WORDS = 3
REPEATED_WORDS = 3


@dataclass(frozen=True, kw_only=True)
class Quality:
    """The filters of rows, in the order of application."""

    empty: IfEmpty = "drop"
    """Rows with an empty completion, or with null as prompt, completion or message: drop, or error (stop with an
    error)."""
    min_characters: CountOrZero = 0
    """Minimum characters of a completion (or text); 0 disables the filter."""
    max_characters: Count | None = None
    """Maximum characters of a completion (or text); null disables the filter."""
    max_repetition: Fraction = 1.0
    """Maximum share of repeated three-word sequences in a completion, between 0 and 1; 1 disables the filter."""
    dedupe: bool = False
    """Drop exact duplicates of earlier rows."""
    near_dedupe: Fraction | None = None
    """Drop rows whose similarity to an earlier row is at least this value, for instance 0.8; null disables the filter.
    Jaccard similarity of three-word sequences, estimated by MinHash. Needs the extra postrain[quality]."""
    balance: str | None = None
    """Column to balance: keep as many rows of each value as the rarest value has; null disables the filter."""


@dataclass(frozen=True)
class Filtered:
    """Rows that passed the filters, and counts of dropped rows by filter."""

    records: tuple[Record, ...]
    dropped: Counter[str] = field(default_factory=Counter)


def empty_error(where: str, part: str) -> ConfigError:
    """The error of data.quality.empty=error for a row whose `part` is empty."""
    return ConfigError(
        f"{where}: the {part} is empty; fill it, remove the row, or drop such rows with data.quality.empty=drop"
    )


def drop_invalid(records: Iterable[Record], quality: Quality, where: Callable[[int], str]) -> Filtered:
    """Drops records with an empty completion or contradictory labels; `where` describes a row in errors."""
    kept: list[Record] = []
    dropped: Counter[str] = Counter()
    for record in records:
        answers = record.completions()
        if not all(answer.strip() for answer in answers):
            if quality.empty == "error":
                raise empty_error(where(record.row), "completion")
            dropped[str(Empty("completion"))] += 1
        elif reason := record.contradiction():
            dropped[reason] += 1
        else:
            kept.append(record)
    return Filtered(tuple(kept), dropped)


def apply_filters(records: Sequence[Record], quality: Quality, *, seed: int) -> Filtered:
    """The records that pass all filters, in order."""
    kept, dropped = tuple(records), Counter[str]()
    for reason, apply in _filters(quality, seed):
        rest = tuple(apply(kept))
        if len(rest) < len(kept):
            dropped[reason] += len(kept) - len(rest)
        kept = rest
    return Filtered(kept, dropped)


Filter = Callable[[Sequence[Record]], Iterable[Record]]


def _filters(quality: Quality, seed: int) -> list[tuple[str, Filter]]:
    low, high, limit = quality.min_characters, quality.max_characters, quality.max_repetition
    active: list[tuple[str, Filter]] = []
    if low:
        active.append((f"shorter than {low} characters", _keep_where(lambda text: len(text) >= low)))
    if high is not None:
        active.append((f"longer than {high} characters", _keep_where(lambda text: len(text) <= high)))
    if limit < 1:
        active.append((f"repetition above {limit:g}", _keep_where(lambda text: repetition(text) <= limit)))
    if quality.dedupe:
        active.append(("duplicate", _without_duplicates))
    if quality.near_dedupe is not None:
        threshold = quality.near_dedupe
        active.append(("near duplicate", lambda records: _without_near_duplicates(records, threshold)))
    if quality.balance is not None:
        column = quality.balance
        active.append((f"balance of {column}", lambda records: _balanced(records, column, seed)))
    return active


def _keep_where(good: Callable[[str], bool]) -> Filter:
    return lambda records: (record for record in records if all(good(text) for text in record.completions()))


def repetition(text: str) -> float:
    """Share of the three-word sequences of a text that are repetitions."""
    return 1 - distinct_ngram_share(text.lower().split(), REPEATED_WORDS)


def _without_duplicates(records: Sequence[Record]) -> Iterable[Record]:
    seen: set[Hashable] = set()
    for record in records:
        # The same completion with the other label is a contradiction, not a duplicate.
        key = (record.content(), getattr(record, "label", None))
        if key not in seen:
            seen.add(key)
            yield record


def _without_near_duplicates(records: Sequence[Record], threshold: float) -> Iterable[Record]:
    datasketch = load("datasketch", key="data.quality.near_dedupe")
    index = datasketch.MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS)
    for place, record in enumerate(records):
        sketch = datasketch.MinHash(num_perm=PERMUTATIONS)
        sketch.update_batch([shingle.encode() for shingle in _shingles(" ".join(record.content()))])
        if not any(index.query(sketch)):
            index.insert(str(place), sketch)
            yield record


def _shingles(text: str) -> set[str]:
    words = text.lower().split()
    return {" ".join(words[at : at + SHINGLE_WORDS]) for at in range(max(1, len(words) - SHINGLE_WORDS + 1))}


def _balanced(records: Sequence[Record], column: str, seed: int) -> Iterable[Record]:
    groups: dict[Any, list[int]] = {}
    for place, record in enumerate(records):
        groups.setdefault(_value(record, column), []).append(place)
    fewest = min(map(len, groups.values()), default=0)
    chosen: set[int] = set()
    for number, places in enumerate(groups.values()):
        order = torch.randperm(len(places), generator=generator(seed, "balance", number))
        chosen |= {places[at] for at in order[:fewest].tolist()}
    return (record for place, record in enumerate(records) if place in chosen)


def _value(record: Record, column: str) -> Hashable:
    value = getattr(record, column, None) if column == "label" else record.columns.get(column)
    if value is None:
        there = ", ".join([*record.columns, *(["label"] if hasattr(record, "label") else [])]) or "(none)"
        raise RowError(record.row, f"data.quality.balance={column}: the row has no such column; it has {there}")
    return value if isinstance(value, Hashable) else repr(value)
