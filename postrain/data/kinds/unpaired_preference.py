"""Unpaired preferences: completions labelled desirable or undesirable.

KTO (Ethayarajh et al. 2024, section 4.1) estimates its KL baseline on prompts with completions of other rows. This
module pairs them over the whole data set, not per batch: batch size, ranks and micro-batches do not change the pairs,
and their reference log-probs can be cached.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from postrain.data.conversation import Answer, Messages, answer_text, plain_text
from postrain.data.encode import Encoded, EncodedRow, Encoder
from postrain.data.kinds.demonstration import Demonstration, demonstration, parse_answer, parse_conversation
from postrain.data.kinds.prompt import Prompt, prompt_record
from postrain.data.layouts import Fields, Malformed, row_format
from postrain.data.prompt_columns import last_answer
from postrain.data.records import Record, conversion
from postrain.data.tokenizing import finish_all
from postrain.data.values import Cell
from postrain.errors import ConfigError
from postrain.types import Batch, Rows

WORD_LABELS = {"true": True, "false": False, "1": True, "0": False}
NUMERIC_LABELS = "label 1 or 0, or in quotes, read as true or false"
THUMB_LABELS = {"👍": True, "👎": False, "up": True, "down": False, "thumbs_up": True, "thumbs_down": False}


@dataclass(frozen=True, kw_only=True)
class UnpairedPreference(Record):
    """A prompt, a completion and its label."""

    prompt: Messages
    completion: Answer
    label: bool
    """True if the completion is desirable."""

    noun = "labelled answers (prompt, completion, label)"
    method = "kto"
    needs = ("completion", "label")

    def content(self) -> tuple[str, ...]:
        return (plain_text(self.prompt), answer_text(self.completion))

    def conversation(self) -> tuple[Messages, tuple[Answer, ...]]:
        return self.prompt, (self.completion,)

    def unused_parts(self, kind: str) -> tuple[str, ...]:
        return ("completion", "label") if kind == "Prompt" else ()

    @classmethod
    def encode_all(cls, records: Sequence[Self], encoder: Encoder) -> Iterator[Encoded]:
        """Each completion with its prompt, and each prompt with the completion of another record (`kto_pairing`)."""
        if encoder.pack:
            return super().encode_all(records, encoder)
        encode = encoder.template.completions
        encodings = (encode(record.prompt, (record.completion,), row=record.row) for record in records)
        tokens = finish_all(encodings, encoder.template.tokenize)
        longest = encoder.max_length
        shortest_cut = longest - longest // 2  # of a completion that does not fit, after the longest prompt
        prompts, completions, keys = [], [], []
        for prompt, (completion,) in tokens:
            prompts.append(_packed(prompt))
            completions.append(_packed(completion[:longest]))  # it is cut after any prompt, so the rest is not needed
            keys.append(completions[-1] if len(completion) < longest else _packed(completion[:shortest_cut]))
        others = kto_pairing(prompts, keys)
        uncounted = replace(encoder, cuts=Counter())  # counts each truncation once

        def joined(by: Encoder, at: int, other: int) -> EncodedRow:
            return by.answer(records[at].row, _unpacked(prompts[at]), _unpacked(completions[other]))

        return (
            EncodedUnpairedPreference(
                record.row, joined(encoder, at, at), joined(uncounted, at, others[at]), label=record.label
            )
            for at, record in enumerate(records)
        )

    @classmethod
    def borrowed(cls, held_out: Sequence[Self], train: Sequence[Self]) -> tuple[Self, ...]:
        """One training record with another completion, if all held-out records have the same completion."""
        completions = {answer_text(record.completion) for record in held_out}
        other = next((record for record in train if answer_text(record.completion) not in completions), None)
        return () if other is None or len(completions) != 1 else (other,)

    @classmethod
    def label_advice(cls, labels: Mapping[str, int]) -> str:
        """Range of the rarer label's weight by KTO, section 4.2: (w_D n_D) / (w_U n_U) from 1 to 4/3."""
        desirable, undesirable = labels["desirable"], labels["undesirable"]
        few, many = sorted((desirable, undesirable))
        if 3 * many <= 4 * few:
            return ""
        if not few:
            return super().label_advice(labels)
        rare = "desirable" if desirable < undesirable else "undesirable"
        # w is the weight of the rarer label: the ratio is many / (w few) if that is "undesirable", else its inverse.
        low, high = (3 / 4, 1) if rare == "undesirable" else (1, 4 / 3)
        ratio = many / few
        return f"; raise method.{rare}_weight to between {low * ratio:.3g} and {high * ratio:.3g} for method=kto"


@row_format("labelled conversation", needs=("messages", "label"), rank=19)
def parse_labelled_conversation(row: int, fields: Fields) -> UnpairedPreference:
    """An unpaired preference from a column of messages and a label of the last message."""
    return _labelled(parse_conversation(row, fields), fields)


@row_format("labelled answer", needs=("prompt", "completion", "label"), answers=("completion",), rank=29)
def parse_labelled_answer(row: int, fields: Fields) -> UnpairedPreference:
    """An unpaired preference from a prompt, an answer and a label."""
    return _labelled(parse_answer(row, fields), fields)


def _labelled(record: Demonstration, fields: Fields) -> UnpairedPreference:
    name, value = fields.needed("label")
    desirable = label(fields, value, name)
    *prompt, _ = record.messages
    completion = last_answer(record.messages, "the conversation")
    return UnpairedPreference(
        row=record.row, prompt=tuple(prompt), completion=completion, label=desirable, columns=record.columns
    )


def label(fields: Fields, value: Any, name: str) -> bool:
    """A label from true, false, 1, 0, up, down or a thumb, as JSON or CSV. Raises Malformed for other values."""
    found = as_label(value)
    if found is None and isinstance(value, int | float | str):
        found = WORD_LABELS.get(str(value).strip().lower().removesuffix(".0"))
        fields.repaired.add(NUMERIC_LABELS)
    if found is None:
        raise Malformed(
            f"{name} has to be true or false (or 1 or 0), got {value!r:.40}; convert the column, or correct "
            "or remove the row"
        )
    return found


def as_label(value: Any) -> bool | None:
    """A label from a boolean, a CSV cell with a boolean, up, down or a thumb; None for other values."""
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
    """The prompt with the completion of another record, for KTO's KL baseline."""
    label: bool

    label_names = ("desirable", "undesirable")
    repeated_fields = ("unrelated",)

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
    """A batch of prompts, completions and labels."""

    rows: Rows
    unrelated: Rows
    """Each row's prompt with the completion of another row, for KTO's KL baseline."""
    label_B: Tensor
    """True for desirable completions, bool [B]."""

    @property
    def row_ids(self) -> tuple[int, ...]:
        """The row of each completion's record."""
        return self.rows.row_ids


@conversion(UnpairedPreference, Demonstration, reason="answer labelled undesirable")
def as_demonstration(record: UnpairedPreference) -> tuple[Demonstration, ...]:
    return demonstration(record, record.prompt, record.completion) if record.label else ()


@conversion(UnpairedPreference, Prompt)
def as_prompt(record: UnpairedPreference) -> tuple[Prompt, ...]:
    return (prompt_record(record, record.prompt),)


# KTO's unrelated completions --------------------------------------------------------------------------------------


def kto_pairing(prompts: Sequence[Hashable], completions: Sequence[Hashable]) -> list[int]:
    """For each item, the index of another item whose prompt and completion differ.

    If no item differs in both, the completion differs. The search is circular and starts half the data away: from the
    next item, both sides of a preference pair would find the chosen side of the next pair, and rejected completions
    would never be used. Raises ConfigError if all completions are equal.
    """
    if len(set(completions)) < 2:
        raise ConfigError(
            f"data: all completions are the same in a part of {len(completions)} unpaired preferences; KTO's KL "
            "baseline needs different ones: add rows or, for the held-out part, raise data.eval_fraction"
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
    fallback, at = None, start  # fallback: an item with another completion but the same prompt
    while at < start + count:
        other = at % count
        if completions[other] == completions[item]:
            at += completion_strides[other]
        elif prompts[other] == prompts[item]:
            fallback = other if fallback is None else fallback
            at += prompt_strides[other]
        else:
            return other
    assert fallback is not None  # kto_pairing checked that completions differ
    return fallback


def _strides(keys: Sequence[Hashable]) -> list[int]:
    """Circular distance from each item to the next with another key; `len(keys)` if all keys are equal."""
    count = len(keys)
    strides = [count] * count
    for at in range(2 * count - 1, -1, -1):
        here, after = at % count, (at + 1) % count
        strides[here] = 1 if keys[here] != keys[after] else min(count, strides[after] + 1)
    return strides


def _packed(ids: Tensor) -> bytes:
    """Token ids in a tenth of the memory of a tensor; all of them are kept until the rows are paired."""
    return ids.numpy().astype(np.int32).tobytes()


def _unpacked(ids: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(ids, np.int32).astype(np.int64))
