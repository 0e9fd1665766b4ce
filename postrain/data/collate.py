"""Encoded records to the batches of postrain.types. Rows stay ragged: padding is left to whoever runs a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from postrain.data.encode import Encoded, EncodedJudgement, EncodedPair, EncodedPrompt, EncodedRow, EncodedSteps
from postrain.types import Batch, Judgements, Pairs, Prompts, Rows, StepRows


def collate(items: Sequence[Encoded]) -> Batch:
    """One batch of records of one kind."""
    match items[0]:
        case EncodedRow():
            return rows([item for item in items if isinstance(item, EncodedRow)])
        case EncodedPair():
            return pairs([item for item in items if isinstance(item, EncodedPair)])
        case EncodedJudgement():
            return judgements([item for item in items if isinstance(item, EncodedJudgement)])
        case EncodedPrompt():
            return prompts([item for item in items if isinstance(item, EncodedPrompt)])
        case EncodedSteps():
            return steps([item for item in items if isinstance(item, EncodedSteps)])


def rows(items: Sequence[EncodedRow]) -> Rows:
    """Token rows."""
    return Rows(
        ids=tuple(item.ids for item in items),
        supervised=tuple(item.supervised for item in items),
        row_ids=tuple(item.row for item in items),
    )


def pairs(items: Sequence[EncodedPair]) -> Pairs:
    """Preference pairs."""
    return Pairs(
        chosen=rows([item.chosen for item in items]),
        rejected=rows([item.rejected for item in items]),
        margin_B=torch.tensor([item.margin for item in items], dtype=torch.float32),
    )


def judgements(items: Sequence[EncodedJudgement]) -> Judgements:
    """Judged completions."""
    return Judgements(
        rows=rows([item.answer for item in items]),
        unrelated=rows([item.unrelated for item in items]),
        label_B=torch.tensor([item.label for item in items], dtype=torch.bool),
    )


def prompts(items: Sequence[EncodedPrompt]) -> Prompts:
    """Prompts with their columns."""
    return Prompts(
        ids=tuple(item.ids for item in items),
        texts=tuple(item.text for item in items),
        columns=tuple(item.columns for item in items),
        row_ids=tuple(item.row for item in items),
    )


def steps(items: Sequence[EncodedSteps]) -> StepRows:
    """Labelled chains."""
    return StepRows(
        rows=rows([item.chain for item in items]),
        labels=tuple(torch.tensor(item.labels, dtype=torch.bool) for item in items),
    )
