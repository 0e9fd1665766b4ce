"""The rows that a teacher reads instead of the student's: another prompt (a hint, a demonstration, a system prompt) or
another tokenizer, and the same completion.

Self-distillation (SDFT: Shenfeld et al. 2026, "Self-Distillation Enables Continual Learning", arXiv 2601.19897) and
context distillation (Askell et al. 2021, arXiv 2112.00861) have the student as teacher and change its prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from string import Formatter
from typing import Any

import torch
from torch import Tensor

from postrain.data.chat import Template
from postrain.data.conversation import DECLARATION, Message, Messages, user
from postrain.data.kinds.prompt import Prompts
from postrain.data.rendering import conversation_of
from postrain.errors import ConfigError
from postrain.models.token_alignment import Vocabularies
from postrain.types import Batch, Rows


@dataclass(frozen=True)
class TeacherRows(Batch):
    """The teacher's rows; their supervised tokens are those of the student, or have the same text."""

    rows: Rows
    spans: tuple[Tensor, ...] | None
    """With another tokenizer, the spans of each row with equal text, int64 [K, 4]; see token_alignment.py."""


@dataclass(frozen=True)
class TeacherContext:
    """Builds the teacher's rows."""

    template: Template
    """The teacher's chat template and tokenizer."""
    prompt: str
    """Format of the last message: {prompt} and the columns of the row."""
    system: str | None
    context: int
    """Context length of the teacher in tokens."""
    vocabularies: Vocabularies | None = None
    """For a teacher with another tokenizer."""

    def rows(self, prompts: Prompts, rows: Rows) -> TeacherRows:
        """The rows of the teacher for completions of these prompts, in their order."""
        items = zip(prompts.texts, prompts.columns, prompts.row_ids, rows.ids, rows.supervised, strict=True)
        ids, masks, spans = [], [], []
        for text, columns, row, ids_L, mask_L in items:
            before = self.template.encode_prompt(self.messages(text, columns, row), row=row)
            begin = int(mask_L.int().argmax())
            completion, mask = ids_L[begin:], mask_L[begin:]
            if self.vocabularies is not None:
                completion, found = self.translated(completion.tolist(), self.vocabularies)
                mask = torch.ones(len(completion), dtype=torch.bool)
                spans.append(found)
            ids.append(torch.cat([before, completion]))
            masks.append(torch.cat([torch.zeros(len(before), dtype=torch.bool), mask]))
            if len(ids[-1]) > self.context:
                raise ConfigError(
                    f"row {row}: the teacher's prompt and completion have {len(ids[-1])} tokens, its context has "
                    f"{self.context}; shorten method.teacher_prompt or set a lower data.max_prompt_length"
                )
        return TeacherRows(Rows(tuple(ids), tuple(masks), rows.row_ids), tuple(spans) if self.vocabularies else None)

    def messages(self, text: str, columns: Mapping[str, Any], row: int) -> Messages:
        """The messages of the teacher's prompt."""
        found = conversation_of(text, columns)
        *before, last = user(found) if isinstance(found, str) else found
        # A message of the assistant at the end is a prefill, which the completion continues.
        if last.role == "user":
            last = replace(last, content=self.filled(last.content, columns, row))
        if self.system is None:
            return (*before, last)
        declared = [turn for turn in before if turn.role == DECLARATION]
        own = [turn for turn in before if turn.role not in (DECLARATION, "system")]
        return (*declared, Message("system", self.system), *own, last)

    def filled(self, prompt: str, columns: Mapping[str, Any], row: int) -> str:
        """The template with the values of a row. Raises ConfigError for a column that the row lacks."""
        values = {**columns, "prompt": prompt}
        if missing := [name for name in placeholders(self.prompt) if name not in values]:
            raise ConfigError(
                f"method.teacher_prompt: row {row} has no column {missing[0]}; it has "
                f"{', '.join(sorted(values))}. Write braces that are text as {{{{ and }}}}"
            )
        return self.prompt.format_map(values)

    def translated(self, ids: Sequence[int], vocabularies: Vocabularies) -> tuple[Tensor, Tensor]:
        """The teacher's tokens of a completion of the student, and the spans of both."""
        found = self.template.encode_continuation(vocabularies.text(ids)).tolist()
        if ids[-1] == vocabularies.student_end:
            found.append(vocabularies.teacher_end)
        # The rows of a batch need a token each.
        found = found or [vocabularies.teacher_end]
        return torch.tensor(found), vocabularies.spans(ids, found)


def placeholders(template: str) -> list[str]:
    """The names in braces of a format string. Raises ConfigError for another format."""
    try:
        fields = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ConfigError(f"method.teacher_prompt: {error}; write braces that are text as {{{{ and }}}}") from None
    if unusable := [name for name in fields if not name.isidentifier()]:
        raise ConfigError(
            f"method.teacher_prompt: {{{unusable[0]}}} is not the name of a column; write braces that are text as "
            "{{ and }}"
        )
    return fields


def end_token(template: Template) -> int:
    """The token that ends an answer."""
    return int(template.encode_completion(user("a"), "b")[1][-1])
