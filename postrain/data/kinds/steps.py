"""Reasoning chains with a label per step, for process reward models, and their tokens.

Each step is tokenised separately, so that no token crosses the border between two steps.

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
from postrain.data.conversation import Answer, Messages, plain_text
from postrain.data.encode import Encoded, EncodedRow, Encoder, TokenUse
from postrain.data.kinds.demonstration import Demonstration, demonstration
from postrain.data.kinds.prompt import Prompt, prompt_record
from postrain.data.kinds.unpaired_preference import UnpairedPreference, label
from postrain.data.layouts import Empty, Fields, Malformed, absent, row_format
from postrain.data.prompt_columns import add_context, needed_prompt
from postrain.data.records import Record, conversion
from postrain.data.tokenizing import Encoding, finish
from postrain.errors import ConfigError
from postrain.jsonl import is_list
from postrain.types import Batch, Rows

STEPS_CUT = "last steps left out"
LAYOUT_FILE = "steps.json"
"""File with the step layout of a process reward model. Other models do not have it."""


@dataclass(frozen=True, kw_only=True)
class Steps(Record):
    """A reasoning chain, each step labelled right or wrong."""

    prompt: Messages
    steps: tuple[str, ...]
    labels: tuple[bool, ...]
    joiner: str = "\n"
    """Text before each step of the chain as one answer, from the StepLayout."""

    noun = "chains of steps (prompt, steps, labels)"
    method = "prm"
    supervises = "steps"
    needs = ("steps", "labels")

    @property
    def answer(self) -> str:
        """The chain as one answer."""
        return "".join(self.joiner + step for step in self.steps).lstrip()

    def content(self) -> tuple[str, ...]:
        return (plain_text(self.prompt), *self.steps)

    def conversation(self) -> tuple[Messages, tuple[Answer, ...]]:
        return self.prompt, self.steps[:1]

    def unused_parts(self, kind: str) -> tuple[str, ...]:
        return ("steps", "labels") if kind == "Prompt" else ()

    def encoding(self, encoder: Encoder) -> Encoding[EncodedSteps]:
        """Tokens of the chain. The prompt is cut so that one step fits; later steps that do not fit are dropped."""
        chain = yield from encoder.layout.encoding(encoder.template, self.prompt, self.steps, row=self.row)
        prompt = encoder.cut_prompt_for(chain.prompt, len(chain.steps[0]) + len(chain.end))
        chain = replace(chain, prompt=prompt)
        fitting = chain.steps_within(encoder.max_length)
        if fitting < len(chain.steps):
            encoder.cuts[STEPS_CUT] += 1
        kept = replace(chain, steps=chain.steps[:fitting])
        return EncodedSteps(self.row, EncodedRow(self.row, *kept.row()), self.labels[:fitting])


@row_format("steps", needs=("prompt", "steps", "labels"), rank=10)
def parse(row: int, fields: Fields) -> Steps:
    """A chain from a prompt, a list of steps and a list of one label per step."""
    (name, steps), (_, labels) = fields.needed("steps"), fields.needed("labels")
    if absent(steps):
        raise Empty("completion")
    if not is_list(steps) or not all(isinstance(step, str) for step in steps):
        raise Malformed(f"{name} has to be a list of texts, got {steps!r:.60}")
    if not is_list(labels):
        raise Malformed(f"labels has to be a list of true and false, got {labels!r:.60}")
    right = tuple(label(fields, one, "each of the labels") for one in labels)
    if len(steps) != len(labels):
        raise Malformed(f"there are {len(steps)} steps but {len(labels)} labels")
    return Steps(row=row, prompt=add_context(fields, needed_prompt(fields)), steps=tuple(steps), labels=right)


@dataclass(frozen=True)
class Chain:
    """The parts of a row as token ids, int64."""

    prompt: Tensor
    steps: tuple[Tensor, ...]
    """Each step with its joiner and separator."""
    end: Tensor
    """Tokens with which the template ends an answer, at least one."""

    def row(self) -> tuple[Tensor, Tensor]:
        """All ids, int64 [L], and a mask that is True at the token directly after each step, bool [L].

        A causal model's hidden state at the position before such a token covers the whole step and nothing after it.
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
    """Text between the steps of a chain. A process reward model is used with the layout of its training."""

    joiner: str = "\n"
    """Text before each step, also where chains become demonstrations or unpaired preferences. White space before the
    first step is removed, except with the plain template of method=prm."""
    separator: str = ""
    """Text after each step, including the last. A step's score is predicted at the separator's last token; empty: at
    the last token of the step."""

    def chain(self, template: Template, prompt: Messages, steps: Sequence[str]) -> Chain:
        """The tokens of a chain."""
        return finish(self.encoding(template, prompt, steps), template.tokenize)

    def encoding(self, template: Template, prompt: Messages, steps: Sequence[str], *, row: int = 0) -> Encoding[Chain]:
        """`chain` for many rows at once; errors name `row`."""
        texts = [self.joiner + step for step in steps]
        if texts and template.name != "plain":
            texts[0] = texts[0].lstrip()
        pieces = [piece for text in texts for piece in (text, self.separator)]
        before, after, end = yield from template.pieces(prompt, pieces, row=row)
        joined = zip(after[::2], after[1::2], strict=True)
        return Chain(before, tuple(torch.cat(pair) for pair in joined), end)

    def to_json(self) -> str:
        """The content of LAYOUT_FILE."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def of_model(cls, directory: Path) -> StepLayout | None:
        """The layout with which the process reward model in `directory` was trained; None for other models."""
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
    """`supervised` is True at the token directly after each step."""
    labels: tuple[bool, ...]
    """True for a right step. Only steps that fit into the row are included, possibly none."""

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

    def token_uses(self) -> Iterator[tuple[str, Tensor, list[TokenUse]]]:
        """The score of a step belongs to its last token, which is before the marked token."""
        labels = iter(self.labels)
        uses: list[TokenUse] = [
            ("positive_step" if next(labels) else "negative_step") if is_end else "context"
            for is_end in self.chain.supervised.roll(-1).tolist()
        ]
        yield "", self.chain.ids, uses


@dataclass(frozen=True)
class StepRows(Batch):
    """Reasoning chains with a label for each step; S steps per chain (ragged)."""

    rows: Rows
    """`supervised` is True at the token directly after each step; the position before it is the end of the step."""
    labels: tuple[Tensor, ...]
    """True for a right step; bool [S] per chain, S ≥ 1."""

    @property
    def row_ids(self) -> tuple[int, ...]:
        """The row of each chain's record."""
        return self.rows.row_ids


@conversion(Steps, Demonstration, reason="chain with a wrong step")
def as_demonstration(record: Steps) -> tuple[Demonstration, ...]:
    return demonstration(record, record.prompt, record.answer) if all(record.labels) else ()


@conversion(Steps, UnpairedPreference)
def as_unpaired_preference(record: Steps) -> tuple[UnpairedPreference, ...]:
    right = all(record.labels)
    return (
        UnpairedPreference(
            row=record.row, columns=record.columns, prompt=record.prompt, completion=record.answer, label=right
        ),
    )


@conversion(Steps, Prompt)
def as_prompt(record: Steps) -> tuple[Prompt, ...]:
    return (prompt_record(record, record.prompt),)
