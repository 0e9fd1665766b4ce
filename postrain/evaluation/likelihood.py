"""Held-out loss and perplexity: how well the model foresees what it should have written. Two models compare only where
they read the same tokens; the loss per character would be another measure.

Axes: B rows, T supervised tokens of a row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from postrain.data.encode import EncodedRow
from postrain.data.module import DataModule
from postrain.evaluation.completions import asked_text
from postrain.evaluation.measures import Estimate, Finding, Subject
from postrain.models.scoring import in_micro_batches, score
from postrain.types import ConfigError, Count, Rows

NEEDED = (
    "needs completions or running text to foresee, and data of prompts alone has none; data=world_demonstrations has"
)


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """Cross-entropy of held-out tokens: of completions given their prompts, or of whole texts.

    `loss` is in nats per token, over all tokens; `perplexity` is its exponential. A record holds a row's own, for the
    distribution over rows.
    """

    rows: Count = 128
    """Held-out rows at most; data.eval_rows decides how many there are."""

    def __call__(self, subject: Subject) -> Finding:
        data = learned_from(subject)
        if data is None:
            return Finding(metrics={}, notes=(NEEDED,))
        items = [item for item in data.eval if isinstance(item, EncodedRow)][: self.rows]
        batch = EncodedRow.collate(items)
        found = row_losses(subject, batch)
        if not any(tokens for _, tokens in found):
            return Finding(metrics={}, notes=(NEEDED,))
        return Finding(
            metrics=over_tokens(found),
            example=asked_text(subject, batch.ids[0]),
            records=tuple({"row": row, **record(*sums)} for row, sums in zip(batch.row_ids, found, strict=True)),
        )


def learned_from(subject: Subject) -> DataModule | None:
    """The data as rows with tokens to foresee; None where it has none."""
    for kind in ("Demonstration", "Text"):
        try:
            return subject.view(kind)
        except ConfigError:
            continue
    return None


@torch.no_grad()
def row_losses(subject: Subject, batch: Rows) -> list[tuple[float, int]]:
    """The summed loss of each row's supervised tokens in nats, and how many they are, [B]."""
    found = in_micro_batches(lambda rows: score(subject.model, rows), batch, subject.micro_batch_tokens)
    sums = (-found.logps_BT.double().sum(1)).tolist()
    return list(zip(sums, found.mask_BT.sum(1).tolist(), strict=True))


def over_tokens(found: Sequence[tuple[float, int]]) -> dict[str, Estimate]:
    """Loss per token and its exponential, from each row's sum and count; the interval is over rows."""
    loss = Estimate.ratio(*zip(*found, strict=True))
    ends = {name: exponential(getattr(loss, name)) for name in ("value", "low", "high")}
    return {"loss": loss, "perplexity": replace(loss, **ends)}


def record(total: float, tokens: int) -> Mapping[str, Any]:
    """What is kept of a row."""
    loss = total / max(tokens, 1)
    return {"loss": loss, "perplexity": exponential(loss), "weight": tokens}


def exponential(loss: float) -> float:
    """e^loss; infinite where a float cannot hold it."""
    return math.exp(loss) if loss < 700 else math.inf
