"""Demonstrations for supervised fine-tuning: messages, or a prompt and its answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from postrain.data.conversation import (
    Answer,
    Message,
    Messages,
    as_answer,
    as_message,
    plain_text,
    tools_of,
    without_tools,
)
from postrain.data.encode import EncodedRow, Encoder
from postrain.data.kinds.prompt import Prompt, prompt_record
from postrain.data.kinds.text import Text
from postrain.data.layouts import Empty, Fields, Malformed, Unusable, absent, empty, row_format
from postrain.data.messages import messages
from postrain.data.prompt_columns import (
    add_context,
    joined_once,
    needed_prompt,
    read_conversation,
    read_prompt,
    strip_repeated_prompt,
)
from postrain.data.records import Record, conversion
from postrain.data.solutions import answer_columns
from postrain.data.tokenizing import Encoding
from postrain.data.tool_calls import calls
from postrain.errors import RowError

NO_ANSWER = "the conversation does not end with an answer"


@dataclass(frozen=True, kw_only=True)
class Demonstration(Record):
    """A conversation whose answers are training targets."""

    messages: Messages
    """The last message is from the assistant."""

    noun = "demonstrations (prompt and completion, or messages)"
    method = "sft"
    needs = ("completion",)

    def content(self) -> tuple[str, ...]:
        return tuple(message.text for message in self.messages)

    def prompt_content(self) -> str:
        return plain_text(self.messages[:-1])

    def completions(self) -> tuple[str, ...]:
        return (self.messages[-1].text,)

    def conversation(self) -> tuple[Messages, tuple[Answer, ...]]:
        return self.messages[:-1], (as_answer(self.messages[-1]),)

    def has_answer_in_loss(self, *, last_only: bool) -> bool:
        answers = [message for message in self.messages if message.role == "assistant"]
        return any(answer.in_loss for answer in (answers[-1:] if last_only else answers))

    def unused_parts(self, kind: str) -> tuple[str, ...]:
        """A prompt does not use the answer, unless a column keeps it for rewards."""
        answer = self.messages[-1]
        stays = bool(answer.tool_calls) or any(value == answer.content for value in self.columns.values())
        return ("completion",) if kind == "Prompt" and not stays else ()

    def encoding(self, encoder: Encoder) -> Encoding[EncodedRow]:
        *prompt, answer = self.messages
        if encoder.loss_on == "completion":
            (row,) = yield from encoder.answers(self.row, tuple(prompt), (as_answer(answer),))
            return row
        if encoder.loss_on == "all" and not all(turn.in_loss or turn.role == "assistant" for turn in prompt):
            raise RowError(
                self.row,
                "data.loss_on=all trains on every turn, but a turn of another role than the assistant "
                "has weight 0; use data.loss_on=assistant",
            )
        ids, is_assistant, weightless = yield from encoder.template.conversation(self.messages, row=self.row)
        last = len(is_assistant) - _trailing(is_assistant)
        supervised = ~weightless & (is_assistant if encoder.loss_on == "assistant" else torch.ones_like(is_assistant))
        kept = encoder.cut_prompt_for(ids[:last], len(ids) - last)
        # cut_prompt_for removes tokens on the left, so their mask values are removed on the left too.
        mask = supervised[:last][last - len(kept) :] if last else None
        encoded = encoder.joined(self.row, kept, ids[last:], mask)
        encoded.supervised[len(kept) :] &= answer.in_loss
        return encoded


def _trailing(mask: Tensor) -> int:
    """Number of consecutive True values at the end."""
    return int(mask.flip(0).long().cumprod(0).sum())


@row_format("conversation", needs=("messages",), rank=20)
def parse_conversation(row: int, fields: Fields) -> Demonstration:
    """A demonstration from a column of messages."""
    turns = add_context(fields, read_conversation(fields))
    if turns[-1].role != "assistant" or len(without_tools(turns)) == 1:
        raise Unusable(NO_ANSWER)
    return Demonstration(row=row, messages=turns)


@row_format("call", needs=("prompt", "tools", "tool_calls"), rank=35)
def parse_call(row: int, fields: Fields) -> Demonstration:
    """A demonstration from a prompt, tools and a column with the calls of the answer, as in xLAM.

    Beside a completion, the column is for rewards.
    """
    name, value = fields.needed("tool_calls")
    answer = Message("assistant", "", tool_calls=calls(value, name) if not empty(value) else ())
    return Demonstration(row=row, messages=add_context(fields, (*needed_prompt(fields), answer)))


@row_format("answer", needs=("prompt", "completion"), answers=("completion",), rank=30)
def parse_answer(row: int, fields: Fields) -> Demonstration:
    """A demonstration from a prompt column and an answer column."""
    prompt = read_prompt(fields)
    name, value = fields.needed("completion")
    if name == "answer" and isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    value = "" if absent(value) else value  # dropped as an empty completion, unless only the prompt is used
    if isinstance(value, str):
        (completion,) = strip_repeated_prompt(fields, (str(value),))
        turns = (*prompt, Message("assistant", completion))
    else:
        found = messages(fields.unused, value, name, or_text="text or ")
        whole = joined_once(prompt, found)
        turns = prompt + found if whole is None else whole
        if turns[-1].role != "assistant":
            raise Malformed(f"{name} has to be text, or messages that end with the assistant's, got {len(found)}")
    if not prompt and without_tools(turns)[0].role == "assistant":
        raise Empty("prompt")
    columns = _reference_columns(name, value) if isinstance(value, str) else {}
    return Demonstration(row=row, messages=add_context(fields, turns), columns=columns)


def _reference_columns(name: str, answer: str) -> Mapping[str, Any]:
    """Reference columns for rewards from a completion of the column `answer` or `solution`."""
    return answer_columns(answer) if name == "answer" else {"solution": answer} if name == "solution" else {}


def demonstration(record: Record, prompt: Messages, answer: Answer) -> tuple[Demonstration, ...]:
    """A demonstration from the prompt and an answer of another record."""
    turns = (*prompt, as_message(answer))
    return (Demonstration(row=record.row, columns=record.columns, messages=turns),)


@conversion(Demonstration, Prompt)
def as_prompt(record: Demonstration) -> tuple[Prompt, ...]:
    """With the calls of the answer as a column if the row has tools; [] if the answer calls none. The row's own column
    of expected calls is kept."""
    *prompt, answer = record.messages
    called = bool(tools_of(prompt) or answer.tool_calls) and "tool_calls" not in record.columns
    expected = {"tool_calls": list(answer.tool_calls)} if called else {}
    return (prompt_record(record, tuple(prompt), **expected),)


@dataclass(frozen=True, kw_only=True)
class DemonstratedPrompt(Prompt):
    """A prompt to sample completions for, whose column `completion` is its demonstration."""

    noun = "prompts with a completion"
    method = "distill"
    needs = ("completion",)


@conversion(Demonstration, DemonstratedPrompt)
def with_demonstration(record: Demonstration) -> tuple[DemonstratedPrompt, ...]:
    *prompt, answer = record.messages
    columns = {**record.columns, "completion": answer.text}
    return (DemonstratedPrompt(row=record.row, prompt=tuple(prompt), columns=columns),)


@conversion(DemonstratedPrompt, Prompt)
def without_demonstration(record: DemonstratedPrompt) -> tuple[Prompt, ...]:
    return (Prompt(row=record.row, prompt=record.prompt, columns=record.columns),)


@conversion(Demonstration, Text, reason="answer of weight 0, which running text cannot hold")
def as_text(record: Demonstration) -> tuple[Text, ...]:
    if not all(message.in_loss for message in record.messages if message.role == "assistant"):
        return ()
    return (Text(row=record.row, columns=record.columns, text=plain_text(record.messages)),)
