"""What every kind of record shares on its way to token rows: the row itself, masks, and cuts where it is too long.

A row that is too long loses the left end of its prompt first; only when one prompt token is left does the answer lose
its right end, and it keeps the token that ends it. Several answers to a prompt keep one prompt. Every cut is counted.

L tokens of a row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from postrain.data.chat import Template
from postrain.data.conversation import Messages
from postrain.types import Batch, Rows

if TYPE_CHECKING:  # the file of the kind stands on this one
    from postrain.data.kinds.steps import StepLayout

LossOn = Literal["completion", "assistant", "all"]
TokenUse = Literal["context", "loss", "positive_step", "negative_step"]
"""Context (no loss); in the loss; last token of a step labelled right; of a step labelled wrong."""

PROMPT_CUT = "prompt cut on the left"
ANSWER_CUT = "answer cut on the right"


@dataclass(frozen=True)
class Encoded(ABC):
    """A record as tokens."""

    row: int
    """The record's number in the source."""

    label_names: ClassVar[tuple[str, str]] = ("true", "false")

    @classmethod
    @abstractmethod
    def collate(cls, items: Sequence[Any]) -> Batch:
        """The batch of records, all of this kind. Rows stay ragged; scoring pads or packs them."""

    def token_rows(self) -> tuple[EncodedRow, ...]:
        """The rows with supervised tokens."""
        return ()

    def sequences(self) -> tuple[Tensor, ...]:
        """The token ids of every row, int64 [L]."""
        return tuple(row.ids for row in self.token_rows())

    def signature(self) -> bytes:
        """Changes with any token, mask, label, margin or column."""
        return b"".join(
            row.ids.numpy().tobytes() + row.supervised.numpy().tobytes() + b"|" for row in self.token_rows()
        )

    def label_values(self) -> tuple[bool, ...]:
        """The labels of the record, which the audit counts under `label_names`."""
        return ()

    def drop_reason(self) -> str | None:
        """Why cutting has left nothing to learn; None where it has not."""
        return None

    def token_uses(self) -> Iterator[tuple[str, Tensor, list[TokenUse]]]:
        """Role (empty unless the record has several rows), token ids and token uses of each row."""
        for row in self.token_rows():
            yield "", row.ids, row.uses()


def collate(items: Sequence[Encoded]) -> Batch:
    """One batch of records of one kind."""
    return type(items[0]).collate(items)


@dataclass(frozen=True)
class EncodedRow(Encoded):
    """One token row."""

    ids: Tensor
    """int64 [L]"""
    supervised: Tensor
    """True where the token itself is learned, bool [L]; never at position 0."""

    @classmethod
    def collate(cls, items: Sequence[Self]) -> Rows:
        return Rows(
            ids=tuple(item.ids for item in items),
            supervised=tuple(item.supervised for item in items),
            row_ids=tuple(item.row for item in items),
        )

    def token_rows(self) -> tuple[EncodedRow, ...]:
        return (self,)

    def uses(self) -> list[TokenUse]:
        """The use of each token."""
        return ["loss" if supervised else "context" for supervised in self.supervised.tolist()]


@dataclass(frozen=True)
class Encoder:
    """How records become token rows within a number of tokens."""

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

    def cut_prompt(self, prompt: Tensor) -> Tensor:
        """A prompt without an answer, cut to what is allowed."""
        return self._shortened(prompt, min(self.max_prompt_length, self.max_length))

    def answers(self, row: int, prompt: Messages, answers: Sequence[str]) -> list[EncodedRow]:
        """Each answer after the same prompt, which leaves room for the longest of them."""
        before, completions = self.template.encode_completions(prompt, answers, row=row)
        kept = self.cut_prompt_for(before, max(map(len, completions)))
        mask = torch.zeros(len(kept), dtype=torch.bool)
        return [self.joined(row, kept, mask, completion) for completion in completions]

    def answer(self, row: int, prompt: Tensor, completion: Tensor) -> EncodedRow:
        """A completion after a prompt, which leaves room for it."""
        kept = self.cut_prompt_for(prompt, len(completion))
        return self.joined(row, kept, torch.zeros(len(kept), dtype=torch.bool), completion)

    def cut_prompt_for(self, prompt: Tensor, answer: int) -> Tensor:
        """The prompt, cut as far as an answer of that many tokens asks for; one token of it always stays."""
        if not len(prompt):
            # Nothing comes before the first token of a row, so an answer without a prompt gets one to follow.
            return self.eos()
        return self._shortened(prompt, max(1, min(self.max_length - answer, self.max_prompt_length)))

    def joined(self, row: int, prompt: Tensor, prompt_mask: Tensor, completion: Tensor) -> EncodedRow:
        """Prompt and completion in one row; an answer that is still too long keeps its end token."""
        room = self.max_length - len(prompt)
        if len(completion) > room:
            self.cuts[ANSWER_CUT] += 1
            completion = torch.cat([completion[: room - 1], completion[-1:]])
        supervised = torch.cat([prompt_mask, torch.ones(len(completion), dtype=torch.bool)])
        supervised[0] = False
        return EncodedRow(row, torch.cat([prompt, completion]), supervised)

    def eos(self) -> Tensor:
        """The end token alone."""
        return torch.tensor([self.template.tokenizer.eos_token_id])

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
