"""Base class of the record kinds, and conversions between kinds.

Each kind is a file of `kinds/` with its fields, builders from table rows, tokens, batch and conversions. A record keeps
its row number for messages and samples, and all columns that are not its fields for rewards and gold scores.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

from postrain.data.conversation import LAST_TURN, Answer, Messages, plain_text
from postrain.data.encode import Encoded, Encoder
from postrain.data.layouts import names
from postrain.data.tokenizing import Encoding, finish_all
from postrain.errors import ConfigError

KINDS: dict[str, type[Record]] = {}
"""All record kinds by name; importing the files of `kinds/` registers them."""
NO_COLUMNS: Mapping[str, Any] = {}
"""Shared by many records, because a dict of their own takes 80 bytes."""


@dataclass(frozen=True, kw_only=True)
class Record(ABC):
    """Base class of records."""

    row: int
    """Line in the file, from 1, or index in the data set, from 0."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """All other columns of the row."""

    noun: ClassVar[str]
    """What messages call records of this kind, with their columns."""
    method: ClassVar[str]
    """The option of a method that trains on this kind."""
    supervises: ClassVar[Literal["tokens", "steps", "nothing"]] = "tokens"
    """Unit in which the audit counts the loss mask."""
    needs: ClassVar[tuple[str, ...]] = ()
    """The parts that this kind needs in addition to a prompt."""
    unused_hints: ClassVar[Mapping[str, str]] = {}
    """Hints for the audit on how to use an unused column, by its name."""

    def __init_subclass__(cls) -> None:
        KINDS[cls.__name__] = cls

    @abstractmethod
    def content(self) -> tuple[str, ...]:
        """The texts of the record's parts; records with equal content are duplicates."""

    def prompt_content(self) -> str:
        """The text that training and held-out records must not share: the prompt, or all of a text."""
        return self.content()[0]

    def opening(self) -> str:
        """The text of the prompt up to its first user message; all of it for a prompt without further turns."""
        prompt, _ = self.conversation() or ((), ())
        end = next((at for at, turn in enumerate(prompt, start=1) if turn.role == "user"), len(prompt))
        if end == len(prompt):
            return self.prompt_content()
        # A transcript of one turn ends with the speaker of the answer.
        return plain_text(prompt[:end]) + (LAST_TURN if prompt[end - 1].written is not None else "")

    def completions(self) -> tuple[str, ...]:
        """The texts of the record without the prompt."""
        return self.content()[1:]

    def conversation(self) -> tuple[Messages, tuple[Answer, ...]] | None:
        """The prompt and the answers that the chat template renders; None for running text."""
        return None

    def has_answer_in_loss(self, *, last_only: bool) -> bool:
        """False if all answers (`last_only`: the last answer) have weight 0."""
        return True

    def contradiction(self) -> str | None:
        """Why the labels of the record contradict each other; None if they do not."""
        return None

    def unused_parts(self, kind: str) -> tuple[str, ...]:
        """The parts that a conversion to `kind` does not use."""
        return ()

    def encoding(self, encoder: Encoder) -> Encoding[Encoded]:
        """The record as tokens; for kinds whose records are encoded independently."""
        raise NotImplementedError

    @classmethod
    def encode_all(cls, records: Sequence[Any], encoder: Encoder) -> Iterator[Encoded]:
        """Encodes records of this kind, in order."""
        if encoder.pack:
            raise ConfigError("data.pack=true is available for running text only; use data.pack=false here")
        return encode_in_batches(records, encoder)

    @classmethod
    def with_reward_columns(cls, records: tuple[Any, ...]) -> tuple[Any, ...]:
        """The records with additional columns for rewards."""
        return records

    @classmethod
    def borrowed(cls, held_out: Sequence[Any], train: Sequence[Any]) -> tuple[Any, ...]:
        """Training records that are needed to encode the held-out records."""
        return ()

    @classmethod
    def label_advice(cls, labels: Mapping[str, int]) -> str:
        """Advice that the audit appends to the label counts; empty for none."""
        return "" if all(labels.values()) else "; only one of the two labels occurs"


def encode(records: Sequence[Record], encoder: Encoder) -> tuple[Encoded, ...]:
    """Encodes records of one kind, in order. Packed text gives fewer items than records."""
    return tuple(encode_each(records, encoder))


def encode_each(records: Sequence[Record], encoder: Encoder) -> Iterator[Encoded]:
    """`encode` of many records, without keeping the items."""
    return type(records[0]).encode_all(records, encoder) if records else iter(())


def encode_in_batches(records: Sequence[Record], encoder: Encoder) -> Iterator[Encoded]:
    """Encodes records independently of each other, with one call of the tokenizer for many records."""
    return finish_all((record.encoding(encoder) for record in records), encoder.template.tokenize)


# Conversion -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Conversion:
    """Conversion of one record kind to another."""

    build: Callable[[Any], tuple[Record, ...]]
    """Returns the converted records; empty if the record cannot be converted."""
    reason: str = ""
    """Why a record may be dropped."""


@dataclass(frozen=True)
class Converted:
    """Converted records."""

    records: tuple[Record, ...]
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Number of dropped records by reason."""
    unused: Mapping[str, int] = field(default_factory=dict)
    """Number of records with an unused part, by its name."""


CONVERSIONS: dict[tuple[str, str], Conversion] = {}
"""Conversions by (source kind, target kind)."""
Source = TypeVar("Source", bound=Record)
Build = Callable[[Source], tuple[Record, ...]]


def conversion(source: type[Source], target: type[Record], reason: str = "") -> Callable[[Build], Build]:
    """Registers a function that converts a record to other kinds; `reason` states why it may return none.

    Conversions add no information. If the target kind needs data that the record lacks, there is no conversion, and
    `convert` raises an error with both kinds.
    """

    def register(build: Build) -> Build:
        CONVERSIONS[source.__name__, target.__name__] = Conversion(build, reason)
        return build

    return register


class WrongKind(ConfigError):
    """The data cannot be converted to the record kind that a method trains on."""

    def __init__(self, message: str, *, source: str, have: str) -> None:
        super().__init__(message)
        self.source, self.have = source, have


def convert(records: Sequence[Record], kind: str, *, source: str) -> Converted:
    """Converts records to `kind`. Raises WrongKind with both kinds if there is no conversion."""
    have = type(records[0]).__name__ if records else kind
    unused = Counter(part for record in records for part in record.unused_parts(kind))
    if have == kind:
        return Converted(tuple(records), unused=unused)
    found = CONVERSIONS.get((have, kind))
    if found is None:
        fitting = [have, *(wanted for held, wanted in CONVERSIONS if held == have)]
        raise WrongKind(
            f"data: this method trains on {KINDS[kind].noun}, but {source} has {KINDS[have].noun}"
            f"{_missing_side(records[0])}; choose other data, or method="
            f"{', '.join(KINDS[each].method for each in fitting)}{_mapping_hint(records[0], kind)}",
            source=source,
            have=KINDS[have].noun,
        )
    converted = [found.build(record) for record in records]
    return Converted(
        tuple(record for made in converted for record in made),
        Counter(found.reason for made in converted if not made),
        unused,
    )


def _mapping_hint(record: Record, kind: str) -> str:
    """Hint to map the other columns of a record, which may hold the missing parts under other names."""
    needs = [part for part in KINDS[kind].needs if part not in record.needs]
    if record.conversation() is None or not needs or len(record.columns) < len(needs):
        return ""
    mapped = " ".join(f"data.columns.{part}=NAME" for part in needs)
    return f", or name the columns it needs, of {names(record.columns)}: {mapped}"


def _missing_side(record: Record) -> str:
    """Hint for a pair without its chosen or rejected column, which is parsed as another kind."""
    sides = ("chosen", "rejected")
    there = [side for side in sides if side in record.columns]
    if len(there) != 1:
        return ""
    (missing,) = set(sides) - set(there)
    return f" (with a column {there[0]}, but no column {missing})"
