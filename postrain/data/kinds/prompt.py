"""Prompts to sample completions for; rewards receive their other columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from torch import Tensor

from postrain.data.conversation import Answer, Messages, is_transcript, plain_text, tools_of, without_tools
from postrain.data.encode import Encoded, Encoder, TokenUse
from postrain.data.layouts import Fields, row_format
from postrain.data.prompt_columns import add_context, needed_prompt
from postrain.data.records import Record
from postrain.data.rendering import as_mapping
from postrain.data.tokenizing import Encoding
from postrain.errors import RowError
from postrain.types import Batch


@dataclass(frozen=True, kw_only=True)
class Prompt(Record):
    """A prompt to sample completions for."""

    prompt: Messages

    noun = "prompts"
    method = "grpo"
    supervises = "nothing"

    def content(self) -> tuple[str, ...]:
        return (plain_text(self.prompt),)

    def conversation(self) -> tuple[Messages, tuple[Answer, ...]]:
        return self.prompt, ()

    @property
    def text(self) -> str:
        """The prompt without chat template and tools."""
        return plain_text(without_tools(self.prompt))

    def encoding(self, encoder: Encoder) -> Encoding[EncodedPrompt]:
        """The tokens of the prompt, truncated on the left if it is too long."""
        ids = yield from encoder.template.prompt(self.prompt, row=self.row)
        if not len(ids):
            raise RowError(self.row, "the prompt is empty; write at least one character or remove the row")
        return EncodedPrompt(self.row, encoder.cut_prompt(ids), self.text, self.columns)

    @classmethod
    def with_reward_columns(cls, records: tuple[Self, ...]) -> tuple[Self, ...]:
        """Add a column `messages` for rewards if a prompt has several turns and its text does not mark the roles, or if
        the data has a column of this name, which may include the answer."""
        single = all(len(without_tools(record.prompt)) == 1 or is_transcript(record.text) for record in records)
        if single and not any("messages" in record.columns for record in records):
            return records
        return tuple(
            replace(
                record,
                columns={
                    **record.columns,
                    "messages": [as_mapping(turn) for turn in without_tools(record.prompt)],
                },
            )
            for record in records
        )


def prompt_record(record: Record, prompt: Messages, **columns: Any) -> Prompt:
    """The prompt of another record, with its columns, further ones, and its tools as a column for rewards."""
    tools = tools_of(prompt)
    declared = {"tools": tools} if tools else {}
    return Prompt(row=record.row, columns={**record.columns, **declared, **columns}, prompt=prompt)


@row_format("prompt", needs=("prompt",), rank=40)
def parse(row: int, fields: Fields) -> Prompt:
    """A prompt from its column, or from messages without an answer."""
    fields.needed("prompt")
    prompt = add_context(fields, needed_prompt(fields))
    tools = tools_of(prompt)
    return Prompt(row=row, prompt=prompt, columns={"tools": tools} if tools else {})


@dataclass(frozen=True)
class EncodedPrompt(Encoded):
    """A prompt as tokens."""

    ids: Tensor
    """int64 [L]"""
    text: str
    """The prompt without chat template."""
    columns: Mapping[str, Any]

    @classmethod
    def collate(cls, items: Sequence[Self]) -> Prompts:
        return Prompts(
            ids=tuple(item.ids for item in items),
            texts=tuple(item.text for item in items),
            columns=tuple(item.columns for item in items),
            row_ids=tuple(item.row for item in items),
        )

    def sequences(self) -> tuple[Tensor, ...]:
        return (self.ids,)

    def signature(self) -> bytes:
        return self.ids.numpy().tobytes() + repr(sorted(self.columns.items())).encode() + b"|"

    def token_uses(self) -> Iterator[tuple[str, Tensor, list[TokenUse]]]:
        yield "", self.ids, ["context"] * len(self.ids)


@dataclass(frozen=True)
class Prompts(Batch):
    """Prompts to sample completions for, with the columns that rewards receive."""

    ids: tuple[Tensor, ...]
    """Token ids of each prompt with chat template, int64 [L]."""
    texts: tuple[str, ...]
    """Each prompt without chat template."""
    columns: tuple[Mapping[str, Any], ...]
    """The other columns of each record, such as `answer` or `gold`; a reward function receives them by name."""
    row_ids: tuple[int, ...]
    """The row of each prompt's record in the source."""

    def cost(self) -> list[int]:
        return [len(ids) for ids in self.ids]
