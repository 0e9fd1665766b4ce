"""Records to token rows: what is supervised, and what is cut when a row is too long.

A row that is too long loses the left end of its prompt first; only when one prompt token is left does the answer lose
its right end, and it keeps the token that ends it. A pair keeps one prompt for both answers; of a chain of steps the
last ones go, whole. Every cut is counted.
Running text may be packed: documents joined by the end token and cut into blocks, where every token is learned anyway.

L tokens of a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from postrain.data.chat import Template
from postrain.data.mismatch import mismatched
from postrain.data.records import (
    Demonstration,
    Judgement,
    Messages,
    Preference,
    Prompt,
    Record,
    Steps,
    Text,
    plain_text,
)
from postrain.data.steps import StepLayout
from postrain.types import ConfigError

LossOn = Literal["completion", "assistant", "all"]

PROMPT_CUT = "prompt cut on the left"
ANSWER_CUT = "answer cut on the right"
TEXT_CUT = "text cut on the right"
STEPS_CUT = "last steps left out"


@dataclass(frozen=True)
class EncodedRow:
    """One token row."""

    row: int
    ids: Tensor
    """int64 [L]"""
    supervised: Tensor
    """True where the token itself is learned, bool [L]; never at position 0."""


@dataclass(frozen=True)
class EncodedPair:
    """Two answers to one prompt."""

    row: int
    chosen: EncodedRow
    rejected: EncodedRow
    margin: float


@dataclass(frozen=True)
class EncodedJudgement:
    """An answer and its thumb."""

    row: int
    answer: EncodedRow
    unrelated: EncodedRow
    """The same prompt with the completion of another judgement."""
    label: bool


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt to continue."""

    row: int
    ids: Tensor
    """int64 [L]"""
    text: str
    """As a person wrote it."""
    columns: Mapping[str, Any]


@dataclass(frozen=True)
class EncodedSteps:
    """A chain of reasoning with a label for each step."""

    row: int
    chain: EncodedRow
    """`supervised` is True at the token right after each step."""
    labels: tuple[bool, ...]
    """True where the step is right; of as many steps as fit into the row, maybe of none."""


Encoded = EncodedRow | EncodedPair | EncodedJudgement | EncodedPrompt | EncodedSteps


def token_rows(item: Encoded) -> tuple[EncodedRow, ...]:
    """The rows with supervised tokens in an encoded record."""
    match item:
        case EncodedRow():
            return (item,)
        case EncodedPair():
            return (item.chosen, item.rejected)
        case EncodedJudgement():
            return (item.answer,)
        case EncodedSteps():
            return (item.chain,)
    return ()


@dataclass(frozen=True)
class Encoder:
    """Turns records into encoded ones within a number of tokens."""

    template: Template
    loss_on: LossOn
    max_length: int
    """Tokens a row may have."""
    max_prompt_length: int
    """Tokens a prompt may have, before its answer is looked at."""
    pack: bool
    layout: StepLayout
    """How steps follow each other."""
    cuts: Counter[str] = field(default_factory=Counter)
    """Rows that lost tokens, by what they lost."""

    def encode(self, records: Sequence[Record]) -> tuple[Encoded, ...]:
        """All records, in order. Packed text has fewer rows than records."""
        if not self.pack:
            judged = [record for record in records if isinstance(record, Judgement)]
            return self._judgements(judged) if judged else tuple(self.one(record) for record in records)
        if not all(isinstance(record, Text) for record in records):
            raise ConfigError("data.pack=true is for running text, where all is learned; use data.pack=false here")
        return tuple(self._packed(record for record in records if isinstance(record, Text)))

    def one(self, record: Record) -> Encoded:
        """One record by itself; a judgement cannot be, because it borrows the completion of another."""
        match record:
            case Text():
                return self._text(record)
            case Demonstration():
                return self._demonstration(record)
            case Preference():
                return self._preference(record)
            case Prompt():
                return self.prompt(record)
            case Steps():
                return self._steps(record)
        raise ConfigError(
            f"data: {type(record).__name__} records are not learned from as they are, only through others"
        )

    def prompt(self, record: Prompt) -> EncodedPrompt:
        """A prompt, cut on the left when too long."""
        ids = self.template.encode_prompt(record.prompt, row=record.row)
        if not len(ids):
            raise ConfigError(f"row {record.row}: the prompt is empty; a model needs at least one token to continue")
        return EncodedPrompt(record.row, self.fitted(ids), plain_text(record.prompt), record.columns)

    def fitted(self, prompt: Tensor) -> Tensor:
        """A prompt without an answer, cut to what is allowed."""
        return self._shortened(prompt, min(self.max_prompt_length, self.max_length))

    def _text(self, record: Text) -> EncodedRow:
        ids = torch.cat([self.template.encode_text(record.text), self._eos()])
        if len(ids) > self.max_length:
            self.cuts[TEXT_CUT] += 1
            ids = ids[: self.max_length]
        return _all_supervised(record.row, ids)

    def _packed(self, records: Iterable[Text]) -> Iterator[EncodedRow]:
        """Blocks of max_length tokens, numbered by the first document in each; the last one may be shorter."""
        held = torch.empty(0, dtype=torch.long)
        first = 0
        for record in records:
            first = first if len(held) else record.row
            held = torch.cat([held, self.template.encode_text(record.text), self._eos()])
            while len(held) >= self.max_length:
                yield _all_supervised(first, held[: self.max_length])
                held, first = held[self.max_length :], record.row
        if len(held) > 1:
            yield _all_supervised(first, held)

    def _demonstration(self, record: Demonstration) -> EncodedRow:
        *prompt, answer = record.messages
        if self.loss_on == "completion":
            return self._answers(record, tuple(prompt), (answer.content,))[0]
        if self.loss_on == "all" and not all(turn.learned or turn.role == "assistant" for turn in prompt):
            raise ConfigError(
                f"row {record.row}: data.loss_on=all learns every turn, but one that is not the assistant's has weight "
                "0; use data.loss_on=assistant"
            )
        ids, speaks, weightless = self.template.encode(record.messages, row=record.row)
        last = len(speaks) - _trailing(speaks)
        learned = ~weightless & (speaks if self.loss_on == "assistant" else torch.ones_like(speaks))
        kept = self._room_made(ids[:last], len(ids) - last)
        # A cut takes from the left, so the mask of what is kept is the right end of the mask.
        mask = learned[:last][last - len(kept) :] if last else torch.zeros(1, dtype=torch.bool)
        encoded = self._row(record.row, kept, mask, ids[last:])
        encoded.supervised[len(kept) :] &= answer.learned
        return encoded

    def _preference(self, record: Preference) -> EncodedPair:
        chosen, rejected = self._answers(record, record.prompt, (record.chosen, record.rejected))
        return EncodedPair(record.row, chosen, rejected, record.margin)

    def _steps(self, record: Steps) -> EncodedSteps:
        """Steps that do not fit are left out whole: a label is for all of its step. The prompt makes room for one."""
        chain = self.layout.chain(self.template, record.prompt, record.steps, row=record.row)
        prompt = self._room_made(chain.prompt, len(chain.steps[0]) + len(chain.end))
        chain = replace(chain, prompt=prompt)
        fitting = chain.steps_within(self.max_length)
        if fitting < len(chain.steps):
            self.cuts[STEPS_CUT] += 1
        kept = replace(chain, steps=chain.steps[:fitting])
        return EncodedSteps(record.row, EncodedRow(record.row, *kept.row()), record.labels[:fitting])

    def _judgements(self, records: Sequence[Judgement]) -> tuple[EncodedJudgement, ...]:
        """Each answer after its own prompt, and the prompt with the answer of another record."""
        encode = self.template.encode_completion
        asked = [encode(record.prompt, record.completion, row=record.row) for record in records]
        answers = [self._answer(record.row, *parts) for record, parts in zip(records, asked, strict=True)]
        # What is left of an answer depends on max_length alone, so it is the same after any prompt.
        said = [answer.ids[answer.supervised] for answer in answers]
        others = mismatched([_key(prompt) for prompt, _ in asked], [_key(ids) for ids in said])
        uncounted = replace(self, cuts=Counter())
        return tuple(
            EncodedJudgement(record.row, answer, uncounted._answer(record.row, prompt, said[other]), label=record.label)
            for record, (prompt, _), answer, other in zip(records, asked, answers, others, strict=True)
        )

    def _answer(self, row: int, prompt: Tensor, completion: Tensor) -> EncodedRow:
        """A completion after a prompt, which leaves room for it."""
        kept = self._room_made(prompt, len(completion))
        return self._row(row, kept, torch.zeros(len(kept), dtype=torch.bool), completion)

    def _answers(self, record: Record, prompt: Messages, answers: Sequence[str]) -> list[EncodedRow]:
        """Each answer after the same prompt, which leaves room for the longest of them."""
        before, completions = self.template.encode_completions(prompt, answers, row=record.row)
        kept = self._room_made(before, max(map(len, completions)))
        mask = torch.zeros(len(kept), dtype=torch.bool)
        return [self._row(record.row, kept, mask, completion) for completion in completions]

    def _room_made(self, prompt: Tensor, answer: int) -> Tensor:
        """The prompt, cut as far as an answer of that many tokens asks for; one token of it always stays."""
        if not len(prompt):
            # Nothing comes before the first token of a row, so an answer without a prompt gets one to follow.
            return self._eos()
        return self._shortened(prompt, max(1, min(self.max_length - answer, self.max_prompt_length)))

    def _row(self, row: int, prompt: Tensor, prompt_mask: Tensor, completion: Tensor) -> EncodedRow:
        """Prompt and completion joined; an answer that is still too long keeps its end token."""
        room = self.max_length - len(prompt)
        if len(completion) > room:
            self.cuts[ANSWER_CUT] += 1
            completion = torch.cat([completion[: room - 1], completion[-1:]])
        supervised = torch.cat([prompt_mask, torch.ones(len(completion), dtype=torch.bool)])
        supervised[0] = False
        return EncodedRow(row, torch.cat([prompt, completion]), supervised)

    def _shortened(self, prompt: Tensor, room: int) -> Tensor:
        """The right end of a prompt; a token that starts every row stays in front."""
        if len(prompt) <= room:
            return prompt
        self.cuts[PROMPT_CUT] += 1
        bos = self.template.tokenizer.bos_token_id
        if room > 1 and bos is not None and int(prompt[0]) == bos:
            kept = prompt[len(prompt) - room + 1 :]
            # Where turns begin with the same token (<|im_start|>), a cut just before one has it in front already.
            return kept if int(kept[0]) == bos else torch.cat([prompt[:1], kept])
        return prompt[len(prompt) - room :]

    def _eos(self) -> Tensor:
        return torch.tensor([self.template.tokenizer.eos_token_id])


def _key(ids: Tensor) -> bytes:
    return ids.numpy().tobytes()


def _trailing(mask: Tensor) -> int:
    """How many of the last values are True."""
    return int(mask.flip(0).long().cumprod(0).sum())


def _all_supervised(row: int, ids: Tensor) -> EncodedRow:
    supervised = torch.ones(len(ids), dtype=torch.bool)
    supervised[0] = False
    return EncodedRow(row, ids, supervised)
