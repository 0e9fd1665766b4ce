"""Sources of rows, selected by `data.source`: the bundled synthetic world, files, the Hugging Face Hub, paraphrases."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from postrain.config.schema import abbreviate
from postrain.data.files import open_split, read_path, rows_of
from postrain.data.layouts import names
from postrain.data.readers import Row, Table, make_table
from postrain.data.template_choice import Mode
from postrain.errors import ConfigError
from postrain.types import Fraction, Positive, Seed, Size
from postrain.world.rows import CONTINUATIONS, Kind, Task, rows


@dataclass(frozen=True)
class Loaded:
    """The rows of a source."""

    train: Table
    held_out: Table | None
    """None if the source has no held-out rows; then a fraction of the training prompts is held out."""

    def without_values(self) -> Loaded:
        """As many rows, without keeping their values in memory."""
        train, held_out = (
            table and replace(table, rows=table.rows[:1] * len(table.rows)) for table in (self.train, self.held_out)
        )
        assert train is not None
        return Loaded(train, held_out)


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """A source of rows."""

    @property
    def template(self) -> Mode:
        """The chat template that the rows require; auto for any."""
        return "auto"

    @abstractmethod
    def load(self, *, eval_rows: int) -> Loaded:
        """Reads all training rows, and at most `eval_rows` generated held-out rows. Raises ConfigError."""


@dataclass(frozen=True, kw_only=True)
class World(Source):
    """The bundled synthetic world: any number of rows, with gold scores, offline."""

    kind: Kind
    """The format of the rows."""
    task: Task
    """Task of the rows, such as stories or instructions. For a skill trained on sums, long_sums (more numbers than any
    sum in training) and word_problems (sums asked for in words) test how far it carries over."""
    count: Size = 2000
    """Number of training rows."""
    seed: Seed = 0
    """Seed of the world: determines its facts and rows; the rules are the same for all seeds."""
    noise: Positive = 0.1
    """Temperature of the simulated annotators; towards 0 their labels follow the gold score."""
    eval_noise: Positive = 0.001
    """Temperature of the annotators of held-out rows; at the default, labels follow the gold score."""
    insults: Fraction = 0.0
    """Share of the demonstrations whose completion begins with an insult, for a helpful but rude model."""

    @property
    def template(self) -> Mode:
        return "plain" if self.task in CONTINUATIONS else "auto"

    def load(self, *, eval_rows: int) -> Loaded:
        return Loaded(
            self._table("train", self.count, self.noise),
            self._table("eval", eval_rows, self.eval_noise),
        )

    def _table(self, split: str, count: int, noise: float) -> Table:
        made = rows(
            self.kind,
            task=self.task,
            count=count,
            seed=self.seed,
            split="train" if split == "train" else "eval",
            noise=noise,
            insults=self.insults,
        )
        name = f"the world's {self.kind} ({self.task}, {split})"
        return Table(name, "row", tuple(Row(number, values) for number, values in enumerate(made)))


@dataclass(frozen=True, kw_only=True)
class Rows(Source):
    """Rows given from Python: mappings, or a `datasets.Dataset`."""

    rows: Any

    def load(self, *, eval_rows: int) -> Loaded:
        """Rows count from 1, as the lines of the file of `fit`. Raises ConfigError for other types."""
        is_dataset = hasattr(self.rows, "with_format")
        if isinstance(self.rows, Mapping) and is_dataset:
            raise ConfigError(f"data: expected one split, got a DatasetDict; choose one of {names(self.rows)}")
        if hasattr(self.rows, "to_dict") and not is_dataset:
            raise ConfigError('data: expected a list of rows, got a DataFrame; write data=frame.to_dict("records")')
        given = rows_of(self.rows) if is_dataset else self.rows
        if not isinstance(given, Iterable) or isinstance(given, Mapping):
            raise ConfigError(
                f"data: expected a list of rows, a path or a datasets.Dataset, got {abbreviate(self.rows)}"
            )
        return Loaded(make_table("data", "row", enumerate(map(_mapping, given), start=1)), None)


def _mapping(row: Any) -> Mapping[str, Any]:
    if not isinstance(row, Mapping):
        raise ConfigError(f'data: expected rows such as {{"prompt": ..., "completion": ...}}, got {abbreviate(row)}')
    return row


@dataclass(frozen=True, kw_only=True)
class Files(Source):
    """Training rows and optional held-out rows: files, folders, globs or saved data sets."""

    path: str
    eval_path: str | None

    def load(self, *, eval_rows: int) -> Loaded:
        train, held_out = read_path(self.path)
        return Loaded(train, read_held_out(self.eval_path) if self.eval_path else held_out)


def read_held_out(path: str) -> Table:
    """All rows of a path; if it has training and held-out files, only the held-out rows."""
    train, held_out = read_path(path)
    return held_out or train


@dataclass(frozen=True, kw_only=True)
class Hub(Source):
    """A data set of the Hugging Face Hub, or a local directory that `datasets` can load."""

    repo: str
    """owner/name, or a directory."""
    subset: str | None = None
    """Subset (configuration) of the data set; null for a data set without subsets."""
    train_split: str = "train"
    """Training split, or a part of it in the syntax of `datasets`: "train[:10000]" reads these rows only."""
    eval_split: str | None = None
    """Held-out split; null holds out a fraction of the training prompts (data.eval_fraction)."""
    data_files: Mapping[str, str] | None = None
    """Files to download, as a path or glob in the repository for each split that is read; null downloads all splits of
    the subset."""
    revision: str | None = None
    """Branch, tag or commit; null takes the newest."""

    def load(self, *, eval_rows: int) -> Loaded:
        train, *held_out = (self._table(split) for split in self._splits())
        if not train.rows:
            raise ConfigError(f"{train.name} is empty; expected at least one row")
        return Loaded(train, held_out[0] if held_out else None)

    def size(self) -> int:
        """Bytes of all rows, in memory."""
        return sum(self._opened(split).data.nbytes for split in self._splits())

    def version(self) -> str:
        """Identifies the rows: the data files by the version of the Hub, and their copy in the cache of `datasets`."""
        return repr([(split, *self._version(self._opened(split))) for split in self._splits()])

    def _version(self, dataset: Any) -> tuple[Any, ...]:
        files = [Path(file["filename"]) for file in dataset.cache_files]
        copies = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        return dataset._fingerprint, len(dataset), copies

    def _splits(self) -> tuple[str, ...]:
        return (self.train_split,) if self.eval_split is None else (self.train_split, self.eval_split)

    def _table(self, split: str) -> Table:
        name = "/".join(part for part in (self.repo, self.subset) if part)
        return make_table(f"{name} ({split})", "row", enumerate(rows_of(self._opened(split))))

    def _opened(self, split: str) -> Any:
        name = split.partition("[")[0]
        if self.data_files is not None and name not in self.data_files:
            raise ConfigError(f"data.source.data_files: no files for the split {name}; add {name}: GLOB")
        if split not in self._datasets:
            self._datasets[split] = open_split(self.repo, self.subset, split, self.revision, self.data_files)
        return self._datasets[split]

    @cached_property
    def _datasets(self) -> dict[str, Any]:
        """The opened splits."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Paraphrases(Source):
    """All facts in all paraphrases: training and held-out prompts have the same facts and different paraphrases."""

    facts: tuple[Mapping[str, str], ...]
    """Facts: values for the {names} in the texts below."""
    train_prompts: tuple[str, ...]
    """Training prompts, as templates with {names}."""
    eval_prompts: tuple[str, ...]
    """Held-out prompts, as templates with {names}."""
    completion: str
    """Reference completion."""
    answer: str
    """The word that a correct completion contains, as a template with {names}."""

    def load(self, *, eval_rows: int) -> Loaded:
        """Orders held-out rows by paraphrase. Raises ConfigError for a {name} that a fact lacks."""
        if not self.facts:
            raise ConfigError("data.source.facts: expected at least one, such as {who: Mia, place: river}")
        return Loaded(self._table("train_prompts", self.train_prompts), self._table("eval_prompts", self.eval_prompts))

    def _table(self, key: str, paraphrases: Sequence[str]) -> Table:
        if not paraphrases:
            raise ConfigError(f"data.source.{key}: expected at least one paraphrase, such as Where is {{who}}?")
        values = [self._values(key, paraphrase, fact) for paraphrase in paraphrases for fact in self.facts]
        rows = tuple(Row(number, value) for number, value in enumerate(values))
        return Table(f"{len(self.facts)} facts in {len(paraphrases)} paraphrases ({key})", "row", rows)

    def _values(self, key: str, paraphrase: str, fact: Mapping[str, str]) -> dict[str, Any]:
        answer = fill("answer", self.answer, fact)
        others = {fill("answer", self.answer, other) for other in self.facts} - {answer}
        return {
            "prompt": fill(key, paraphrase, fact),
            "completion": fill("completion", self.completion, fact),
            "answer": answer,
            "gold": {
                "weights": {"correct": 1.0},
                "correct": {"type": "word", "accept": answer, "reject": sorted(others)},
            },
        }


def fill(key: str, text: str, fact: Mapping[str, str]) -> str:
    """Replaces the {names} in a text by the values of a fact."""
    try:
        return text.format(**fact)
    except (KeyError, IndexError, ValueError) as error:
        raise ConfigError(
            f"data.source.{key}: {text!r} cannot be filled from {dict(fact)} ({error}); every fact needs every name"
        ) from None
