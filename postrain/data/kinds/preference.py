"""Preference pairs: two completions of a prompt, one of them preferred."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from postrain.data.conversation import (
    FIRST_TURN,
    LAST_TURN,
    Answer,
    Messages,
    answer_text,
    is_transcript,
    plain_text,
    transcript,
)
from postrain.data.encode import Encoded, EncodedRow, Encoder, TokenUse
from postrain.data.kinds.demonstration import Demonstration, demonstration
from postrain.data.kinds.prompt import Prompt, prompt_record
from postrain.data.kinds.unpaired_preference import UnpairedPreference
from postrain.data.layouts import Empty, Fields, Malformed, Unusable, absent, empty, number, row_format, text
from postrain.data.messages import messages
from postrain.data.prompt_columns import (
    add_context,
    last_answer,
    merge_prompts,
    needed_prompt,
    read_prompt,
    strip_repeated_prompt,
)
from postrain.data.records import Record, conversion
from postrain.data.tokenizing import Encoding
from postrain.types import Batch, Rows

EQUAL_SIDES = "chosen equals rejected"
TIE = "no preference between the two responses"
UNSHARED = "chosen and rejected do not share their prompt"
UNANSWERED = "chosen or rejected does not end with the assistant"


@dataclass(frozen=True, kw_only=True)
class Preference(Record):
    """A preferred and a rejected completion of a prompt."""

    prompt: Messages
    chosen: Answer
    rejected: Answer
    margin: float = 0.0
    """Margin of the chosen completion, from the data; 0 if the data has none."""

    noun = "preference pairs (prompt, chosen, rejected)"
    method = "dpo"
    needs = ("chosen", "rejected")
    unused_hints: ClassVar[Mapping[str, str]] = {
        "margin": "method.use_margin=true uses the margin, where the method has it"
    }

    def content(self) -> tuple[str, ...]:
        return (plain_text(self.prompt), answer_text(self.chosen), answer_text(self.rejected))

    def conversation(self) -> tuple[Messages, tuple[Answer, ...]]:
        return self.prompt, (self.chosen, self.rejected)

    def contradiction(self) -> str | None:
        _, chosen, rejected = self.content()
        return EQUAL_SIDES if chosen.strip() == rejected.strip() else None

    def unused_parts(self, kind: str) -> tuple[str, ...]:
        sides = {"Demonstration": ("rejected",), "Prompt": ("chosen", "rejected")}.get(kind, ())
        return (*sides, "margin") if self.margin else sides

    def encoding(self, encoder: Encoder) -> Encoding[EncodedPair]:
        chosen, rejected = yield from encoder.answers(self.row, self.prompt, (self.chosen, self.rejected))
        return EncodedPair(self.row, chosen, rejected, self.margin)


@row_format("preference", needs=("chosen", "rejected"), answers=("chosen", "rejected"), rank=0)
def parse(row: int, fields: Fields) -> Preference:
    """A pair from two answer columns; the prompt is a separate column or the beginning of both."""
    prompt = _pair_prompt(fields)
    shared, chosen, rejected = _sides(fields, prompt)
    whole = merge_prompts(prompt, shared, "chosen and rejected")
    if not whole and fields.layout.parts["prompt"]:
        raise Empty("prompt")
    if not whole:
        raise Malformed("the prompt is missing; add a column prompt, or a user message before chosen")
    margin = fields.optional("margin")
    value = number(margin[1], margin[0]) if margin else 0.0
    return Preference(row=row, prompt=add_context(fields, whole), chosen=chosen, rejected=rejected, margin=value)


@row_format(
    "compared responses",
    needs=("prompt", "response1", "response2", "preference"),
    answers=("response1", "response2"),
    rank=10,
)
def parse_compared(row: int, fields: Fields) -> Preference:
    """A pair from two response columns and a preference: negative for the first, positive for the second (HelpSteer).

    The margin is the magnitude of the preference. Ties are dropped.
    """
    prompt = add_context(fields, needed_prompt(fields))
    found = [fields.needed(part) for part in ("response1", "response2")]
    if any(absent(value) for _, value in found):
        raise Empty("completion")
    responses = tuple(text(value, name) for name, value in found)
    name, value = fields.needed("preference")
    preference = 0 if value is None else number(value, name)
    if preference == 0:
        raise Unusable(TIE)
    first, second = strip_repeated_prompt(fields, responses)
    chosen, rejected = (first, second) if preference < 0 else (second, first)
    return Preference(row=row, prompt=prompt, chosen=chosen, rejected=rejected, margin=abs(preference))


def _pair_prompt(fields: Fields) -> Messages:
    """The prompt from its column or from messages without an answer; () if both sides contain it."""
    prompt = read_prompt(fields)
    found = fields.peek("messages")
    if found is None or empty(found[1]):
        return prompt
    turns = messages(fields.unused, found[1], found[0])
    # Messages that end with an answer repeat one of the sides.
    if turns[-1].role == "assistant":
        return prompt
    fields.find("messages")
    return merge_prompts(prompt, turns, found[0])


def _sides(fields: Fields, prompt: Messages) -> tuple[Messages, Answer, Answer]:
    """The turns that both sides share, and the two answers."""
    (first, chosen), (second, rejected) = fields.needed("chosen"), fields.needed("rejected")
    if absent(chosen) or absent(rejected):
        raise Empty("completion")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if not prompt and fields.layout.parts["prompt"] and not is_transcript("\n\n" + chosen.lstrip()):
            raise Empty("prompt")
        if not prompt:
            return _split(str(chosen), str(rejected), first)
        better, worse = strip_repeated_prompt(fields, (str(chosen), str(rejected)))
        return (), better, worse
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise Malformed(
            f"{first} and {second} have to be two texts or two message lists, got {chosen!r:.40} and {rejected!r:.40}"
        )
    one, other = (
        messages(fields.unused, side, name, or_text="text or ") for side, name in ((chosen, first), (rejected, second))
    )
    if one[:-1] != other[:-1]:
        raise Unusable(UNSHARED)
    if one[-1].role != "assistant" or other[-1].role != "assistant":
        raise Unusable(UNANSWERED)
    return one[:-1], last_answer(one, first), last_answer(other, second)


def _split(chosen: str, rejected: str, name: str) -> tuple[Messages, str, str]:
    """Prompt and answers of two transcripts, split at the last assistant turn."""
    # Some files lack the blank line at the beginning of a transcript.
    chosen, rejected = ("\n\n" + side.lstrip() for side in (chosen, rejected))
    cut = chosen.rfind(LAST_TURN) + len(LAST_TURN)
    if not chosen.startswith(FIRST_TURN) or LAST_TURN not in chosen:
        raise Malformed(f"the column prompt is missing, and {name} is not a transcript (Human: ... Assistant: ...)")
    prompt, answers = chosen[:cut], (chosen[cut:], rejected[cut:])
    if not rejected.startswith(prompt) or LAST_TURN in answers[1]:
        raise Unusable(UNSHARED)
    if any(FIRST_TURN in answer for answer in answers):
        raise Unusable(UNANSWERED)
    return transcript(prompt), answers[0].strip(), answers[1].strip()


@dataclass(frozen=True)
class EncodedPair(Encoded):
    """A preference as tokens."""

    chosen: EncodedRow
    rejected: EncodedRow
    margin: float

    @classmethod
    def collate(cls, items: Sequence[Self]) -> Pairs:
        return Pairs(
            chosen=EncodedRow.collate([item.chosen for item in items]),
            rejected=EncodedRow.collate([item.rejected for item in items]),
            margin_B=torch.tensor([item.margin for item in items], dtype=torch.float32),
        )

    def token_rows(self) -> tuple[EncodedRow, ...]:
        return (self.chosen, self.rejected)

    def signature(self) -> bytes:
        return super().signature() + repr(self.margin).encode()

    def drop_reason(self) -> str | None:
        """Truncation may remove all tokens in which the sides differ."""
        return "chosen equals rejected once cut" if torch.equal(self.chosen.ids, self.rejected.ids) else None

    def token_uses(self) -> Iterator[tuple[str, Tensor, list[TokenUse]]]:
        yield "chosen", self.chosen.ids, self.chosen.uses()
        yield "rejected", self.rejected.ids, self.rejected.uses()


@dataclass(frozen=True)
class Pairs(Batch):
    """Preference pairs."""

    chosen: Rows
    rejected: Rows
    margin_B: Tensor
    """Margin of the chosen completions, from the data; float [B], 0 if the data has none."""

    @property
    def row_ids(self) -> tuple[int, ...]:
        """The row of each pair's record."""
        return self.chosen.row_ids

    def cost(self) -> list[int]:
        """Tokens of each pair. The prompt counts once, because both answers share one copy of it."""
        prompts = [int(supervised.long().argmax()) for supervised in self.chosen.supervised]
        both = zip(self.chosen.cost(), self.rejected.cost(), prompts, strict=True)
        return [one + other - shared for one, other, shared in both]


@conversion(Preference, Demonstration)
def chosen_as_demonstration(record: Preference) -> tuple[Demonstration, ...]:
    return demonstration(record, record.prompt, record.chosen)


@conversion(Preference, UnpairedPreference, reason=EQUAL_SIDES)
def as_two_unpaired_preferences(record: Preference) -> tuple[UnpairedPreference, ...]:
    """Empty if the sides are equal: the same completion would get both labels."""
    if record.contradiction():
        return ()
    sides = ((record.chosen, True), (record.rejected, False))
    return tuple(
        UnpairedPreference(row=record.row, columns=record.columns, prompt=record.prompt, completion=answer, label=label)
        for answer, label in sides
    )


@conversion(Preference, Prompt)
def as_prompt(record: Preference) -> tuple[Prompt, ...]:
    return (prompt_record(record, record.prompt),)
