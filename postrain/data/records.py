"""The base of every kind of record, and records seen as another kind.

A kind stands in one file of `kinds/`: its fields, how rows of a table become records, how those become tokens and
batches, and as which other kinds they serve. A record keeps its row in the source for error messages and samples, and
every column that is not part of its kind, for rewards and gold scores.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

from postrain.data.encode import Encoded, Encoder
from postrain.data.layouts import names
from postrain.errors import ConfigError

KINDS: dict[str, type[Record]] = {}
"""Every kind of record by its name, filled as the files of `kinds/` are imported."""


@dataclass(frozen=True, kw_only=True)
class Record(ABC):
    """What every record has."""

    row: int
    """Line in the file, from 1, or index in the data set, from 0."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Everything else that stood in the row."""

    supervises: ClassVar[Literal["tokens", "steps", "nothing"]] = "tokens"
    """What the audit counts as learned."""
    needs: ClassVar[tuple[str, ...]] = ()
    """The parts that a prompt lacks to be this kind of record."""
    unused_hints: ClassVar[Mapping[str, str]] = {}
    """Where an unused column could be of use, by its name."""

    def __init_subclass__(cls) -> None:
        KINDS[cls.__name__] = cls

    @abstractmethod
    def content(self) -> tuple[str, ...]:
        """The text of the record, part by part: equal contents are duplicates."""

    def prompt_content(self) -> str:
        """What must not be both in training and held out: the prompt, or the whole of a text."""
        return self.content()[0]

    def completions(self) -> tuple[str, ...]:
        """The texts that a model would learn to write, without the prompt."""
        return self.content()[1:]

    def has_answer_in_loss(self, *, last_only: bool) -> bool:
        """False where every answer (or the last one, where only that is learned) has weight 0."""
        return True

    def contradiction(self) -> str | None:
        """Why the labels of the record cannot be learned; None where they can."""
        return None

    def unused_parts(self, kind: str) -> tuple[str, ...]:
        """The parts that are not used where the record serves as `kind`."""
        return ()

    def encode(self, encoder: Encoder) -> Encoded:
        """The record as tokens, where it needs no other record."""
        raise NotImplementedError

    @classmethod
    def encode_all(cls, records: Sequence[Any], encoder: Encoder) -> tuple[Encoded, ...]:
        """Records of this kind, in order."""
        if encoder.pack:
            raise ConfigError("data.pack=true is for running text, where all is learned; use data.pack=false here")
        return tuple(record.encode(encoder) for record in records)

    @classmethod
    def with_reward_columns(cls, records: tuple[Any, ...]) -> tuple[Any, ...]:
        """The records with the columns that rewards get besides their own."""
        return records

    @classmethod
    def borrowed(cls, held_out: Sequence[Any], train: Sequence[Any]) -> tuple[Any, ...]:
        """Training records without which the held-out ones cannot be encoded."""
        return ()

    @classmethod
    def label_advice(cls, labels: Mapping[str, int]) -> str:
        """What the audit adds to the counts of labels."""
        return "" if all(labels.values()) else "; only one of the two labels occurs"


def encode(records: Sequence[Record], encoder: Encoder) -> tuple[Encoded, ...]:
    """Records of one kind as tokens, in order. Packed text has fewer rows than records."""
    return type(records[0]).encode_all(records, encoder) if records else ()


# Conversion -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Conversion:
    """How one kind of record is seen as another."""

    build: Callable[[Any], tuple[Record, ...]]
    """The records seen in one; none where it has nothing to say there."""
    reason: str = ""
    """Why a record may have nothing to say."""


@dataclass(frozen=True)
class Converted:
    """Records seen as one kind."""

    records: tuple[Record, ...]
    dropped: Mapping[str, int] = field(default_factory=dict)
    """How many had nothing to say, by reason."""
    unused: Mapping[str, int] = field(default_factory=dict)
    """How many had a part that is left out, by its name."""


CONVERSIONS: dict[tuple[str, str], Conversion] = {}
"""From (kind, kind) to how the first is seen as the second."""
Source = TypeVar("Source", bound=Record)
Build = Callable[[Source], tuple[Record, ...]]


def conversion(source: type[Source], target: type[Record], reason: str = "") -> Callable[[Build], Build]:
    """Registers a function that sees a record as another kind; `reason` is why it may return none.

    A conversion never invents: what the other kind needs and the data does not say is refused, naming both kinds.
    """

    def register(build: Build) -> Build:
        CONVERSIONS[source.__name__, target.__name__] = Conversion(build, reason)
        return build

    return register


def convert(records: Sequence[Record], kind: str, *, source: str) -> Converted:
    """The records as `kind`. Raises ConfigError, naming both kinds, where the data does not say what `kind` needs."""
    have = type(records[0]).__name__ if records else kind
    found = Conversion(lambda record: (record,)) if have == kind else CONVERSIONS.get((have, kind))
    if found is None:
        possible = " or ".join(wanted for held, wanted in CONVERSIONS if held == have)
        raise ConfigError(
            f"data: this method trains on {kind} records, but {source} holds {have} records"
            f"{_missing_side(records[0])}"
            f"{f' (which can also serve as {possible})' if possible else ''}; choose another data= or method="
            f"{_mapping_hint(records[0], kind)}"
        )
    seen = [found.build(record) for record in records]
    unused = Counter(part for record in records for part in record.unused_parts(kind))
    return Converted(
        tuple(record for made in seen for record in made), Counter(found.reason for made in seen if not made), unused
    )


def _mapping_hint(record: Record, kind: str) -> str:
    """The columns of a prompt without an answer, which may hold what it lacks under another name."""
    needs = KINDS[kind].needs
    if record.supervises != "nothing" or not record.columns or not needs:
        return ""
    mapped = " ".join(f"data.columns.{part}=NAME" for part in needs)
    return f", or name the columns it needs, of {names(record.columns)}: {mapped}"


def _missing_side(record: Record) -> str:
    """What to say of a pair that lost a side, because a row with one side alone passes for something else."""
    sides = ("chosen", "rejected")
    there = [side for side in sides if side in record.columns]
    if len(there) != 1:
        return ""
    (missing,) = set(sides) - set(there)
    return f" (row {record.row} has {there[0]} but no column {missing})"
