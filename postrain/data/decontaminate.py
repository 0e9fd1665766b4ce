"""Decontamination: drops training rows that contain prompts of a benchmark.

Texts are compared as lower-case words without punctuation. A word of a benchmark's prompt is matched if an
n-gram around it also occurs in the row. A row is dropped if it matches the share `overlap` of the words of a prompt.
The defaults are those of Tülu 3 (Lambert et al. 2024, section 3.2): 8-grams and half of the words. GPT-3 (Brown et al.
2020, appendix C) drops on any common 13-gram: ngram 13 and overlap 0.

n-grams in more than MOST_SHARED prompts are instructions that a benchmark repeats, and do not count (GPT-3 ignores
n-grams that occur in more than ten documents). A prompt with fewer than n words matches only an equal prompt.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from annotated_types import Interval

from postrain.config.tree import instantiate
from postrain.data.data_options import Part, rows_named
from postrain.data.formats import parse
from postrain.data.records import Record
from postrain.data.repetition import ngrams
from postrain.types import Fraction

OVERLAPS = "overlaps "
"""The reason of a dropped row, with the name of the benchmark."""
MOST_SHARED = 10
MOST_PROMPTS = 1000
"""Prompts of a benchmark that is generated."""
WORD = re.compile(r"\w+")
Ngram = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Decontaminate:
    """The settings of `data.decontaminate`."""

    path: str | tuple[str, ...]
    """A file of the benchmark or several, in any layout, or options of the group data. Held-out rows if there are some,
    else all rows."""
    ngram: Annotated[int, Interval(ge=1, le=100)] = 8
    """Words of an n-gram."""
    overlap: Fraction = 0.5
    """Minimum share of the words of a benchmark's prompt in common n-grams; 0 drops rows with any common n-gram."""

    def benchmarks(self) -> list[Benchmark]:
        """Reads and indexes the benchmarks. Raises ConfigError for one that cannot be read."""
        paths = (self.path,) if isinstance(self.path, str) else self.path
        return [self._benchmark(path) for path in paths]

    def _benchmark(self, path: str) -> Benchmark:
        part = Part(**instantiate(rows_named(path)))
        loaded = part.load("data.decontaminate", eval_rows=MOST_PROMPTS)
        prompts = [record.prompt_content() for record in parse(loaded.held_out or loaded.train, {}).records]
        return benchmark(Path(path).name, prompts, ngram=self.ngram, overlap=self.overlap)


@dataclass(frozen=True)
class Benchmark:
    """The n-grams of a benchmark's prompts."""

    name: str
    size: int
    """Number of prompts."""
    ngram: int
    overlap: float
    places: Mapping[Ngram, Sequence[tuple[int, int]]] = field(repr=False)
    """Prompt and first word of each n-gram."""
    words: Mapping[int, int] = field(repr=False)
    """Number of words of each prompt that its n-grams contain."""
    short: Mapping[Ngram, int] = field(repr=False)
    """The prompts with fewer than n words."""

    def matches(self, record: Record) -> Iterator[int]:
        """The prompts that a record contains."""
        if self.short and (equal := self.short.get(tuple(words(record.prompt_content())))) is not None:
            yield equal
        covered: dict[int, set[int]] = defaultdict(set)
        for gram in filter(self.places.__contains__, ngrams(words("\n".join(record.content())), self.ngram)):
            for prompt, first in self.places[gram]:
                covered[prompt].update(range(first, first + self.ngram))
        yield from (prompt for prompt, found in covered.items() if len(found) >= self.overlap * self.words[prompt])


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return WORD.findall(text.lower())


def benchmark(name: str, prompts: Sequence[str], *, ngram: int, overlap: float) -> Benchmark:
    """Indexes the prompts of a benchmark."""
    places: dict[Ngram, list[tuple[int, int]]] = defaultdict(list)
    short: dict[Ngram, int] = {}
    for number, prompt in enumerate(prompts):
        found = words(prompt)
        if 0 < len(found) < ngram:
            short[tuple(found)] = number
        for first, gram in enumerate(ngrams(found, ngram)):
            places[gram].append((number, first))
    kept = {gram: found for gram, found in places.items() if len({number for number, _ in found}) <= MOST_SHARED}
    covered: dict[int, set[int]] = defaultdict(set)
    for found in kept.values():
        for number, first in found:
            covered[number].update(range(first, first + ngram))
    counts = {number: len(found) for number, found in covered.items()}
    return Benchmark(name, len(prompts), ngram, overlap, kept, counts, short)


@dataclass(frozen=True)
class Decontaminated:
    """The clean records, and what was found in the others."""

    records: tuple[Record, ...]
    dropped: Counter[str]
    """Number of dropped rows by reason."""
    prompts: Mapping[str, frozenset[int]]
    """The prompts of each benchmark that occur in training rows."""


def decontaminate(records: Iterable[Record], benchmarks: Sequence[Benchmark]) -> Decontaminated:
    """Drops the records that contain prompts of a benchmark."""
    kept: list[Record] = []
    dropped: Counter[str] = Counter()
    prompts: dict[str, set[int]] = defaultdict(set)
    for record in records:
        found = {one.name: set(one.matches(record)) for one in benchmarks}
        contaminated = [name for name, numbers in found.items() if numbers]
        for name in contaminated:
            prompts[name] |= found[name]
        if contaminated:
            dropped[OVERLAPS + contaminated[0]] += 1
        else:
            kept.append(record)
    return Decontaminated(tuple(kept), dropped, {name: frozenset(found) for name, found in prompts.items()})
