"""Filters: empty, contradictory, too short, too long, repetitive, duplicate or over-represented rows.

Every filter counts what it drops. Label sanity (empty answers, chosen equal to rejected) also holds for held-out rows;
the rest is for training rows alone, so that an evaluation does not change with the filters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from postrain.config.extras import load
from postrain.data.records import Record
from postrain.data.repetition import distinct_ngram_share
from postrain.errors import ConfigError
from postrain.seeds import generator
from postrain.types import Count, CountOrZero, Fraction

PERMUTATIONS = 64
SHINGLE_WORDS = 3
REPEATED_WORDS = 3


@dataclass(frozen=True, kw_only=True)
class Quality:
    """The filters, in the order they are applied."""

    empty: Literal["drop", "error"] = "drop"
    """Rows without completion text: drop or error."""
    min_characters: CountOrZero = 0
    """Minimum characters of a completion (or text)."""
    max_characters: Count | None = None
    """Maximum characters of a completion (or text); null is no limit."""
    max_repetition: Fraction = 1.0
    """Largest share of a completion's three-word sequences that may be repetitions; 1 keeps all."""
    dedupe: bool = False
    """Drop exact duplicates of earlier rows."""
    near_dedupe: Fraction | None = None
    """Drop rows whose three-word sequences overlap with an earlier row's by this share or more, for instance 0.8
    (Jaccard, estimated); needs the extra postrain[quality]."""
    balance: str | None = None
    """Column to balance: each value keeps as many rows as the rarest has."""


@dataclass(frozen=True)
class Filtered:
    """What the filters kept."""

    records: tuple[Record, ...]
    dropped: Counter[str] = field(default_factory=Counter)


def drop_invalid(records: Iterable[Record], quality: Quality, where: Callable[[int], str]) -> Filtered:
    """Only records whose labels can be learned; `where` names a row in an error."""
    kept: list[Record] = []
    dropped: Counter[str] = Counter()
    for record in records:
        answers = record.completions()
        if not all(answer.strip() for answer in answers):
            if quality.empty == "error":
                raise ConfigError(
                    f"{where(record.row)}: the completion is empty; fill it, remove the row, or drop such rows with "
                    "data.quality.empty=drop"
                )
            dropped["empty completion"] += 1
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
    """Share of the three-word sequences of a text that have stood there before."""
    return 1 - distinct_ngram_share(text.lower().split(), REPEATED_WORDS)


def _without_duplicates(records: Sequence[Record]) -> Iterable[Record]:
    seen: set[Hashable] = set()
    for record in records:
        # A judged completion and its opposite are a contradiction, not a duplicate.
        key = (record.content(), getattr(record, "label", None))
        if key not in seen:
            seen.add(key)
            yield record


def _without_near_duplicates(records: Sequence[Record], threshold: float) -> Iterable[Record]:
    datasketch = load("datasketch")
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
        raise ConfigError(f"data.quality.balance={column}: row {record.row} has no such column; there are {there}")
    return value if isinstance(value, Hashable) else repr(value)
