"""Completions labelled desirable or undesirable. Undesirable ones are judged, never imitated.

KTO (Ethayarajh et al. 2024, section 4.1) measures its KL baseline on prompts with completions of other rows. These
pairs are a property of the data and not of a batch: batch size, ranks and micro-batches cannot change them, and their
reference log-probs can be kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from postrain.data.conversation import Messages, plain_text
from postrain.data.encode import Encoded, EncodedRow, Encoder
from postrain.data.kinds.demonstration import Demonstration, demonstration, parse_answer, parse_conversation
from postrain.data.kinds.prompt import Prompt
from postrain.data.layouts import Fields, Malformed, row_format
from postrain.data.prompt_columns import last_answer
from postrain.data.readers import Cell
from postrain.data.records import Record, conversion
from postrain.errors import ConfigError
from postrain.types import Batch, Rows

WORD_LABELS = {"true": True, "false": False, "1": True, "0": False}
ONE_AND_ZERO = "label 1 or 0, or in quotes, read as true or false"
THUMB_LABELS = {"👍": True, "👎": False, "up": True, "down": False, "thumbs_up": True, "thumbs_down": False}


@dataclass(frozen=True, kw_only=True)
class UnpairedPreference(Record):
    """A completion with a label."""

    prompt: Messages
    completion: str
    label: bool
    """True where the completion is desirable."""

    needs = ("completion", "label")

    def content(self) -> tuple[str, ...]:
        return (plain_text(self.prompt), self.completion)

    def unused_parts(self, kind: str) -> tuple[str, ...]:
        return ("completion", "label") if kind == "Prompt" else ()

    @classmethod
    def encode_all(cls, records: Sequence[Self], encoder: Encoder) -> tuple[Encoded, ...]:
        """Each completion after its own prompt, and the prompt with the completion of another record."""
        if encoder.pack:
            return super().encode_all(records, encoder)
        encode = encoder.template.encode_completion
        tokens = [encode(record.prompt, record.completion, row=record.row) for record in records]
        answers = [encoder.answer(record.row, *parts) for record, parts in zip(records, tokens, strict=True)]
        # What is left of an answer depends on max_length alone, so it is the same after any prompt.
        said = [answer.ids[answer.supervised] for answer in answers]
        others = kto_pairing([_key(prompt) for prompt, _ in tokens], [_key(ids) for ids in said])
        uncounted = replace(encoder, cuts=Counter())
        return tuple(
            EncodedUnpairedPreference(
                record.row, answer, uncounted.answer(record.row, prompt, said[other]), label=record.label
            )
            for record, (prompt, _), answer, other in zip(records, tokens, answers, others, strict=True)
        )

    @classmethod
    def borrowed(cls, held_out: Sequence[Self], train: Sequence[Self]) -> tuple[Self, ...]:
        """Held-out unpaired preferences that all have the same completion borrow another one from training."""
        said = {record.completion for record in held_out}
        other = next((record for record in train if record.completion not in said), None)
        return () if other is None or len(said) != 1 else (other,)

    @classmethod
    def label_advice(cls, labels: Mapping[str, int]) -> str:
        """KTO (section 4.2) wants weight times count of both labels within 1 to 4/3."""
        desirable, undesirable = labels["desirable"], labels["undesirable"]
        few, many = sorted((desirable, undesirable))
        if 3 * many <= 4 * few:
            return ""
        if not few:
            return super().label_advice(labels)
        rare = "desirable" if desirable < undesirable else "undesirable"
        # Desirable over undesirable: raising the rarer side's weight w puts many / (w few), or its inverse, there.
        low, high = (3 / 4, 1) if rare == "undesirable" else (1, 4 / 3)
        ratio = many / few
        return f"; raise method.{rare}_weight to between {low * ratio:.3g} and {high * ratio:.3g} for method=kto"


@row_format("labelled conversation", needs=("messages", "label"), rank=19)
def parse_labelled_conversation(row: int, fields: Fields) -> UnpairedPreference:
    """A column of messages, and a label of the last one."""
    return _labelled(parse_conversation(row, fields), fields)


@row_format("labelled answer", needs=("prompt", "completion", "label"), answers=("completion",), rank=29)
def parse_labelled_answer(row: int, fields: Fields) -> UnpairedPreference:
    """A prompt, its answer, and a label."""
    return _labelled(parse_answer(row, fields), fields)


def _labelled(record: Demonstration, fields: Fields) -> UnpairedPreference:
    name, value = fields.needed("label")
    liked = label(fields, value, name)
    *prompt, _ = record.messages
    said = last_answer(record.messages, "the conversation")
    return UnpairedPreference(
        row=record.row, prompt=tuple(prompt), completion=said, label=liked, columns=record.columns
    )


def label(fields: Fields, value: Any, name: str) -> bool:
    """A value that has to be a label: true, false, 1, 0, or a thumb. Words of CSV files and of JSON are the same."""
    found = as_label(value)
    if found is None and isinstance(value, int | float | str):
        found = WORD_LABELS.get(str(value).strip().lower().removesuffix(".0"))
        fields.repaired.add(ONE_AND_ZERO)
    if found is None:
        raise Malformed(f"{name} has to be true or false (or 1 or 0), got {value!r:.40}; correct or remove the row")
    return found


def as_label(value: Any) -> bool | None:
    """A boolean, also as a cell of a CSV file has it, or a thumb; None for all else."""
    if isinstance(value, bool):
        return value
    word = value.strip().lower() if isinstance(value, str) else ""
    if isinstance(value, Cell) and word in ("true", "false"):
        return word == "true"
    return THUMB_LABELS.get(word)


@dataclass(frozen=True)
class EncodedUnpairedPreference(Encoded):
    """An unpaired preference as tokens."""

    answer: EncodedRow
    unrelated: EncodedRow
    """The same prompt with the completion of another unpaired preference."""
    label: bool

    label_names = ("desirable", "undesirable")

    @classmethod
    def collate(cls, items: Sequence[Self]) -> UnpairedPreferences:
        return UnpairedPreferences(
            rows=EncodedRow.collate([item.answer for item in items]),
            unrelated=EncodedRow.collate([item.unrelated for item in items]),
            label_B=torch.tensor([item.label for item in items], dtype=torch.bool),
        )

    def token_rows(self) -> tuple[EncodedRow, ...]:
        return (self.answer,)

    def signature(self) -> bytes:
        return super().signature() + repr(self.label).encode()

    def label_values(self) -> tuple[bool, ...]:
        return (self.label,)


@dataclass(frozen=True)
class UnpairedPreferences(Batch):
    """Completions with labels."""

    rows: Rows
    unrelated: Rows
    """Each row's prompt followed by the completion of another row: what KTO measures its KL baseline on."""
    label_B: Tensor
    """True where the completion is desirable, bool [B]."""

    @property
    def row_ids(self) -> tuple[int, ...]:
        """The records the completions came from."""
        return self.rows.row_ids


@conversion(UnpairedPreference, Demonstration, reason="answer labelled undesirable")
def as_demonstration(record: UnpairedPreference) -> tuple[Demonstration, ...]:
    return demonstration(record, record.prompt, record.completion) if record.label else ()


@conversion(UnpairedPreference, Prompt)
def as_prompt(record: UnpairedPreference) -> tuple[Prompt, ...]:
    return (Prompt(row=record.row, columns=record.columns, prompt=record.prompt),)


# KTO's unrelated completions --------------------------------------------------------------------------------------


def kto_pairing(prompts: Sequence[Hashable], completions: Sequence[Hashable]) -> list[int]:
    """For each item another whose prompt and completion differ, or only its completion where none differs in both.

    The search starts half-way round: starting next door, both sides of a preference pair would take the chosen side of
    the next pair, and no rejected completion would ever be borrowed.
    """
    if len(set(completions)) < 2:
        raise ConfigError(
            f"data: all completions are the same in a part of {len(completions)} unpaired preferences; KTO's KL "
            "baseline needs others: give more rows or, where it is the held-out part, a larger data.eval_fraction"
        )
    strides = _strides(prompts), _strides(completions)
    return [_partner(item, prompts, completions, *strides) for item in range(len(prompts))]


def _partner(
    item: int,
    prompts: Sequence[Hashable],
    completions: Sequence[Hashable],
    prompt_strides: Sequence[int],
    completion_strides: Sequence[int],
) -> int:
    count = len(prompts)
    start = item + count // 2
    fallback, at = None, start
    while at < start + count:
        other = at % count
        if completions[other] == completions[item]:
            at += completion_strides[other]
        elif prompts[other] == prompts[item]:
            fallback = other if fallback is None else fallback
            at += prompt_strides[other]
        else:
            return other
    assert fallback is not None  # there is another completion somewhere
    return fallback


def _strides(keys: Sequence[Hashable]) -> list[int]:
    """How many places on, going round, the key is another one; a whole round where there is no other."""
    count = len(keys)
    strides = [count] * count
    for at in range(2 * count - 1, -1, -1):
        here, after = at % count, (at + 1) % count
        strides[here] = 1 if keys[here] != keys[after] else min(count, strides[after] + 1)
    return strides


def _key(ids: Tensor) -> bytes:
    return ids.numpy().tobytes()
