"""Chains of reasoning, each step labelled right or wrong, and how they are written as tokens.

Every step is tokenised by itself, so that its last token is its own whatever the tokenizer would merge across the
border.

L tokens of a row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from postrain.data.chat import Template
from postrain.data.conversation import Messages, plain_text
from postrain.data.encode import Encoded, EncodedRow, Encoder, Use
from postrain.data.kinds.demonstration import Demonstration, demonstration
from postrain.data.kinds.prompt import Prompt
from postrain.data.kinds.unpaired_preference import UnpairedPreference, label
from postrain.data.layouts import Fields, Malformed, is_list, row_format
from postrain.data.prompt_columns import asked, begun
from postrain.data.records import Record, conversion
from postrain.errors import ConfigError
from postrain.types import Batch, Rows

STEPS_CUT = "last steps left out"
LAYOUT_FILE = "steps.json"
"""Lies in the directory of a process reward model, and of no other model: how it has learned to read chains."""


@dataclass(frozen=True, kw_only=True)
class Steps(Record):
    """A chain of reasoning, each step labelled right or wrong."""

    prompt: Messages
    steps: tuple[str, ...]
    labels: tuple[bool, ...]

    supervises = "steps"
    needs = ("steps", "labels")

    def content(self) -> tuple[str, ...]:
        return (plain_text(self.prompt), *self.steps)

    def unused_parts(self, kind: str) -> tuple[str, ...]:
        return ("steps", "labels") if kind == "Prompt" else ()

    def encode(self, encoder: Encoder) -> EncodedSteps:
        """Steps that do not fit are left out whole: a label is for all of its step. The prompt makes room for one."""
        chain = encoder.layout.chain(encoder.template, self.prompt, self.steps, row=self.row)
        prompt = encoder.cut_prompt_for(chain.prompt, len(chain.steps[0]) + len(chain.end))
        chain = replace(chain, prompt=prompt)
        fitting = chain.steps_within(encoder.max_length)
        if fitting < len(chain.steps):
            encoder.cuts[STEPS_CUT] += 1
        kept = replace(chain, steps=chain.steps[:fitting])
        return EncodedSteps(self.row, EncodedRow(self.row, *kept.row()), self.labels[:fitting])


@row_format("steps", needs=("prompt", "steps", "labels"), rank=10)
def parse(row: int, fields: Fields) -> Steps:
    """A prompt, a list of steps, and a list of as many labels."""
    (name, steps), (_, labels) = fields.needed("steps"), fields.needed("labels")
    if not is_list(steps) or not all(isinstance(step, str) for step in steps):
        raise Malformed(f"{name} has to be a list of texts, got {steps!r:.60}")
    if not steps:
        raise Malformed(f"{name} is an empty list; write at least one step, or remove the row")
    if not is_list(labels):
        raise Malformed(f"labels has to be a list of true and false, got {labels!r:.60}")
    right = tuple(label(fields, one, "each of the labels") for one in labels)
    if len(steps) != len(labels):
        raise Malformed(f"there are {len(steps)} steps but {len(labels)} labels")
    return Steps(row=row, prompt=begun(fields, asked(fields)), steps=tuple(steps), labels=right)


@dataclass(frozen=True)
class Chain:
    """The parts of a row, each a piece of token ids, int64."""

    prompt: Tensor
    steps: tuple[Tensor, ...]
    """Each with what stands before and behind it."""
    end: Tensor
    """What the template ends an answer with, at least one token."""

    def row(self) -> tuple[Tensor, Tensor]:
        """All ids, [L], and True at the token right after each step, bool [L].

        A model's state just before such a token is its state at the step's end, all it knows of the step and no more.
        """
        ids = torch.cat([self.prompt, *self.steps, self.end])
        after = torch.tensor([len(self.prompt), *map(len, self.steps)]).cumsum(0)[1:]
        return ids, torch.zeros(len(ids), dtype=torch.bool).index_fill(0, after, True)

    def steps_within(self, length: int) -> int:
        """Number of leading steps that fit into a row of `length` tokens."""
        fixed = len(self.prompt) + len(self.end)
        ends = torch.tensor([len(step) for step in self.steps]).cumsum(0)
        return int((ends + fixed <= length).sum())


@dataclass(frozen=True, kw_only=True)
class StepLayout:
    """How the steps of a chain follow each other; a process reward model reads chains as it has learned them."""

    joiner: str = "\n"
    """Stands before each step; not before the first where the template sets answers off by itself."""
    separator: str = ""
    """Stands after each step, the last one too; a step's score is read at its last token. Empty: at the last token of
    the step."""

    def chain(self, template: Template, prompt: Messages, steps: Sequence[str], *, row: int = 0) -> Chain:
        """A chain as tokens; `row` names it in an error."""
        texts = [self.joiner + step for step in steps]
        if texts and template.name != "plain":
            texts[0] = texts[0].lstrip()
        pieces = [piece for text in texts for piece in (text, self.separator)]
        before, after, end = template.encode_pieces(prompt, pieces, row=row)
        joined = zip(after[::2], after[1::2], strict=True)
        return Chain(before, tuple(torch.cat(pair) for pair in joined), end)

    def to_json(self) -> str:
        """What LAYOUT_FILE holds."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def of_model(cls, directory: Path) -> StepLayout | None:
        """The layout that the process reward model in a directory was trained with; None for any other model."""
        path = directory / LAYOUT_FILE
        if not path.is_file():
            return None
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            return cls(joiner=saved["joiner"], separator=saved["separator"])
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise ConfigError(f"{path} does not hold a joiner and a separator ({error}); copy it again") from None


@dataclass(frozen=True)
class EncodedSteps(Encoded):
    """A chain as tokens, with a label for each step."""

    chain: EncodedRow
    """`supervised` is True at the token right after each step."""
    labels: tuple[bool, ...]
    """True where the step is right; of as many steps as fit into the row, maybe of none."""

    label_names = ("right", "wrong")

    @classmethod
    def collate(cls, items: Sequence[Self]) -> StepRows:
        return StepRows(
            rows=EncodedRow.collate([item.chain for item in items]),
            labels=tuple(torch.tensor(item.labels, dtype=torch.bool) for item in items),
        )

    def token_rows(self) -> tuple[EncodedRow, ...]:
        return (self.chain,)

    def signature(self) -> bytes:
        return super().signature() + repr(self.labels).encode()

    def label_values(self) -> tuple[bool, ...]:
        return self.labels

    def drop_reason(self) -> str | None:
        return None if self.labels else "first step too long"

    def token_uses(self) -> Iterator[tuple[str, Tensor, list[Use]]]:
        """A step is judged at its last token, the one before the marked one."""
        labels = iter(self.labels)
        judged = self.chain.supervised.roll(-1).tolist()
        yield "", self.chain.ids, [("right" if next(labels) else "wrong") if here else "read" for here in judged]


@dataclass(frozen=True)
class StepRows(Batch):
    """Chains of reasoning with a label for each step; S steps of a chain (ragged)."""

    rows: Rows
    """`supervised` is True at the token right after each step, so that what is read before it is the step's end."""
    labels: tuple[Tensor, ...]
    """True where the step is right; bool [S] of each chain, S ≥ 1."""

    @property
    def row_ids(self) -> tuple[int, ...]:
        """The records the chains came from."""
        return self.rows.row_ids


@conversion(Steps, Demonstration, reason="chain with a wrong step")
def as_demonstration(record: Steps) -> tuple[Demonstration, ...]:
    return demonstration(record, record.prompt, " ".join(record.steps)) if all(record.labels) else ()


@conversion(Steps, UnpairedPreference)
def as_unpaired_preference(record: Steps) -> tuple[UnpairedPreference, ...]:
    said, right = " ".join(record.steps), all(record.labels)
    return (
        UnpairedPreference(row=record.row, columns=record.columns, prompt=record.prompt, completion=said, label=right),
    )


@conversion(Steps, Prompt)
def as_prompt(record: Steps) -> tuple[Prompt, ...]:
    return (Prompt(row=record.row, columns=record.columns, prompt=record.prompt),)
