"""Token rows with loss masks, and truncation, for all record kinds.

A row that is too long loses the left of its prompt, down to one prompt token. If the answer does not fit either, the
prompt keeps its last tokens, up to half of the row, and the answer its beginning, without an end token. Several answers
to a prompt share one truncated prompt. Truncated rows are counted.

L tokens of a row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from postrain.data.chat import Template
from postrain.data.conversation import Answer, Messages
from postrain.data.tokenizing import Encoding
from postrain.types import Batch, Rows

if TYPE_CHECKING:  # kinds/steps.py imports this file
    from postrain.data.kinds.steps import StepLayout

LossOn = Literal["completion", "assistant", "all"]
TokenUse = Literal["context", "loss", "positive_step", "negative_step"]
"""Context (no loss); in the loss; last token of a step labelled right; of a step labelled wrong."""

PROMPT_CUT = "prompt cut on the left"
ANSWER_CUT = "answer cut on the right (no end token)"


@dataclass(frozen=True)
class Encoded(ABC):
    """A record as tokens."""

    row: int
    """Number of the row in the source."""

    label_names: ClassVar[tuple[str, str]] = ("true", "false")
    repeated_fields: ClassVar[tuple[str, ...]] = ()
    """Fields whose tokens are those of other items; `sequences` leaves them out."""

    @classmethod
    @abstractmethod
    def collate(cls, items: Sequence[Any]) -> Batch:
        """A batch of records of this kind. Rows stay ragged; scoring pads or packs them."""

    def token_rows(self) -> tuple[EncodedRow, ...]:
        """The rows with tokens in the loss."""
        return ()

    def sequences(self) -> tuple[Tensor, ...]:
        """The token ids of every row, int64 [L]."""
        return tuple(row.ids for row in self.token_rows())

    def signature(self) -> bytes:
        """Bytes that differ for different tokens, masks, labels, margins or columns."""
        return b"".join([row.signature() for row in self.token_rows()])

    def label_values(self) -> tuple[bool, ...]:
        """The labels of the record; the audit counts them under `label_names`."""
        return ()

    def drop_reason(self) -> str | None:
        """Why the record cannot be used after truncation; None if it can."""
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
    """True for tokens in the loss, bool [L]; False at position 0."""

    @classmethod
    def collate(cls, items: Sequence[Self]) -> Rows:
        return Rows(
            ids=tuple(item.ids for item in items),
            supervised=tuple(item.supervised for item in items),
            row_ids=tuple(item.row for item in items),
        )

    def token_rows(self) -> tuple[EncodedRow, ...]:
        return (self,)

    def sequences(self) -> tuple[Tensor, ...]:
        return (self.ids,)

    def signature(self) -> bytes:
        return self.ids.numpy().tobytes() + self.supervised.numpy().tobytes() + b"|"

    def uses(self) -> list[TokenUse]:
        """The use of each token."""
        return ["loss" if supervised else "context" for supervised in self.supervised.tolist()]


@dataclass(frozen=True)
class Encoder:
    """Encodes records as token rows of limited length."""

    template: Template
    loss_on: LossOn
    max_length: int
    """Maximum tokens per row."""
    max_prompt_length: int
    """Maximum tokens per prompt."""
    pack: bool
    layout: StepLayout
    """Separators between the steps of a reasoning chain."""
    cuts: Counter[str] = field(default_factory=Counter)
    """Number of truncated rows by the truncated part."""

    def cut_prompt(self, prompt: Tensor) -> Tensor:
        """A truncated prompt without an answer."""
        return self._truncated(prompt, min(self.max_prompt_length, self.max_length))

    def answers(self, row: int, prompt: Messages, answers: Sequence[Answer]) -> Encoding[list[EncodedRow]]:
        """One row per answer, all with the same prompt, truncated to fit the longest answer."""
        before, completions = yield from self.template.completions(prompt, answers, row=row)
        kept = self.cut_prompt_for(before, max(completion.numel() for completion in completions))
        return [self.joined(row, kept, completion) for completion in completions]

    def answer(self, row: int, prompt: Tensor, completion: Tensor) -> EncodedRow:
        """One row of prompt and completion."""
        kept = self.cut_prompt_for(prompt, completion.numel())
        return self.joined(row, kept, completion)

    def cut_prompt_for(self, prompt: Tensor, answer: int) -> Tensor:
        """The prompt truncated to leave `answer` tokens, down to one token; to half of the row if they do not fit."""
        if not prompt.numel():
            # The first token of a row has no context to be predicted from: an answer without a prompt follows eos.
            return self.eos()
        room = self.max_length - answer
        room = room if room > 0 else max(1, self.max_length // 2)
        return self._truncated(prompt, min(room, self.max_prompt_length))

    def joined(self, row: int, prompt: Tensor, completion: Tensor, prompt_mask: Tensor | None = None) -> EncodedRow:
        """Prompt and completion in one row; a truncated completion has no end token.

        `prompt_mask` is True for the tokens of the prompt in the loss, bool [L]; None if none is.
        """
        room = self.max_length - prompt.numel()
        if completion.numel() > room:
            self.cuts[ANSWER_CUT] += 1
            completion = completion[:room]
        ids = torch.cat([prompt, completion])
        supervised = np.ones(ids.numel(), np.bool_)  # a third of the time of tensors
        supervised[: prompt.numel()] = False if prompt_mask is None else prompt_mask
        supervised[0] = False
        return EncodedRow(row, ids, torch.from_numpy(supervised))

    def eos(self) -> Tensor:
        """The eos token, [1]."""
        return torch.tensor([self.template.tokenizer.eos_token_id])

    def _truncated(self, prompt: Tensor, room: int) -> Tensor:
        """The last `room` tokens of a prompt; a leading bos token stays."""
        if prompt.numel() <= room:
            return prompt
        self.cuts[PROMPT_CUT] += 1
        bos = self.template.tokenizer.bos_token_id
        if room > 1 and bos is not None and int(prompt[0]) == bos:
            kept = prompt[prompt.numel() - room + 1 :]
            # If bos also starts turns (<|im_start|>), the kept part may already begin with it.
            return kept if int(kept[0]) == bos else torch.cat([prompt[:1], kept])
        return prompt[prompt.numel() - room :]
